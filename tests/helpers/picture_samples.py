"""Drawn pictures, data configs with them, and one conversation in every format."""

import base64
import hashlib
import io
import json
import pathlib
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from data.config import DataConfig

TILES = {"tile_size": 28, "patch_size": 14}
"""One image token per tile."""
ASKED, ANSWER = "What is shown?", "Noise."


def picture(number: int, size: tuple[int, int] = (40, 60), form: str = "PNG", **options) -> bytes:
    """The encoded picture of `size` (height, width) with noise from seed `number`."""
    noise = np.random.RandomState(number).randint(0, 256, (*size, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form, **options)
    return file.getvalue()


def data_config(folder: pathlib.Path, source: dict[str, Any], **changes) -> DataConfig:
    """A data config with the source `shown`, tokenized as bytes, in rows of 256 tokens."""
    base = {"sources": {"shown": {"kind": "pictures", **source}}, "sequence_length": 256, "batch_size": 4,
            "held_out_fraction": 0.0, "shuffle": False, "tiles": TILES, "cache_dir": str(folder / "cache")}  # fmt: skip
    return DataConfig.model_validate(base | changes)


def write_llava(folder: pathlib.Path, sizes: list[list[tuple[int, int]]], *, answer: str = "It is {}.") -> pathlib.Path:
    """A file of LLaVA records, with a picture of each of the sizes per record."""
    records = []
    for i, of_record in enumerate(sizes):
        names = [f"{i}_{k}.png" for k in range(len(of_record))]
        for name, size in zip(names, of_record, strict=True):
            (folder / name).write_bytes(picture(i, size))
        asked = "<image>\n" * len(names) + f"What is {i}?"
        said = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer.format(i)}]
        records.append({"id": i, "conversations": said, **({"image": names} if names else {})})
    path = folder / "samples.json"
    path.write_text(json.dumps(records))
    return path


# ---- one conversation in every format --------------------------------------------------------------------------------


def _json(folder: pathlib.Path, record: Any, name: str = "samples.jsonl") -> str:
    (folder / name).write_text(json.dumps(record))
    return name


def _llava(folder: pathlib.Path, data: bytes) -> str:
    (folder / "shown.png").write_bytes(data)
    said = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": ANSWER}]
    return _json(folder, [{"id": "1", "image": "shown.png", "conversations": said}], "samples.json")


def _sharegpt(folder: pathlib.Path, data: bytes) -> str:
    (folder / "shown.png").write_bytes(data)
    said = [{"role": "user", "content": f"<image>{ASKED}"}, {"role": "assistant", "content": ANSWER}]
    return _json(folder, {"messages": said, "images": ["shown.png"]})


def _chat(part: dict[str, Any], **more) -> dict[str, Any]:
    content = [part, {"type": "text", "text": ASKED}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWER}], **more}


def _openai(folder: pathlib.Path, data: bytes) -> str:
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return _json(folder, _chat({"type": "image_url", "image_url": {"url": uri, "detail": "high"}}))


def _hugging_face(folder: pathlib.Path, data: bytes) -> str:
    (folder / "shown.png").write_bytes(data)
    return _json(folder, _chat({"type": "image"}, images=["shown.png"]))


def _parquet(folder: pathlib.Path, data: bytes) -> str:
    kind = pyarrow.struct([("path", pyarrow.string()), ("bytes", pyarrow.binary())])
    pictures = pyarrow.array([[{"bytes": data, "path": None}]], pyarrow.list_(kind))
    said = [[{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": ANSWER}]]
    pyarrow.parquet.write_table(pyarrow.table({"images": pictures, "conversations": said}), folder / "samples.parquet")
    return "samples.parquet"


def write_tar(path: pathlib.Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _webdataset(folder: pathlib.Path, data: bytes) -> str:
    said = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": ANSWER}]
    record = json.dumps({"conversations": said}).encode()
    write_tar(folder / "samples.tar", {"000.png": data, "000.json": record})
    return "samples.tar"


def _obelics(folder: pathlib.Path, data: bytes) -> str:
    url = "https://example.org/shown.png?size=2"
    (folder / f"{hashlib.sha256(url.encode()).hexdigest()}.png").write_bytes(data)
    return _json(folder, {"images": [url, None, None], "texts": [None, ASKED, ANSWER], "metadata": "[]"})


def _mmc4(folder: pathlib.Path, data: bytes) -> str:
    (folder / "shown.png").write_bytes(data)
    info = {"image_name": "shown.png", "raw_url": "https://example.org/a", "matched_text_index": 0, "matched_sim": 0.3}
    return _json(folder, {"text_list": [ASKED, ANSWER], "image_info": [info], "similarity_matrix": [[0.3, 0.1]]})


def _chartqa(folder: pathlib.Path, data: bytes) -> str:
    (folder / "png").mkdir()
    (folder / "png" / "shown.png").write_bytes(data)
    return _json(folder, [{"imgname": "png/shown.png", "query": ASKED, "label": [ANSWER]}], "samples.json")


def _docvqa(folder: pathlib.Path, data: bytes) -> str:
    (folder / "shown.png").write_bytes(data)
    record = {"questionId": 1, "question": ASKED, "image": "shown.png", "answers": [ANSWER, ANSWER]}
    return _json(folder, {"dataset_name": "mine", "data": [record]}, "samples.json")


TEN: dict[str, Callable[[pathlib.Path, bytes], str]] = {
    "llava": _llava,
    "sharegpt": _sharegpt,
    "openai": _openai,
    "hugging_face": _hugging_face,
    "parquet": _parquet,
    "webdataset": _webdataset,
    "obelics": _obelics,
    "mmc4": _mmc4,
    "chartqa": _chartqa,
    "docvqa": _docvqa,
}
"""Name -> writer of the same conversation about a picture into a folder; it returns the name of the file."""
