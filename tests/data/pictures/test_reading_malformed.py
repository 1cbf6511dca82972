"""Malformed samples: each is one typed error, or is skipped and counted by its reason."""

import base64
import io
import json
import pathlib
import struct
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data.cache.tokenize_pictures import tokenize_pictures
from data.pictures.sample import MAX_PICTURES, REASONS
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from tests.helpers.picture_samples import data_config, picture

PNG, JPEG = picture(1, (20, 20)), picture(1, (64, 64), "JPEG")


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it has this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


FRAMES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
BAD_PICTURES = {
    "empty": b"",
    "text": b"not a picture",
    "truncated JPEG": JPEG[: len(JPEG) // 2],
    "truncated PNG": PNG[:-20],
    "changed PNG": PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:],
    "GIF": encoded(FRAMES[0], "GIF"),
    "BMP": encoded(FRAMES[0], "BMP"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "animation": encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "16 bits": encoded(Image.fromarray(np.full((8, 8), 999, np.uint16)), "PNG"),
    "long side": encoded(Image.new("L", (1, (1 << 16) + 1)), "PNG"),
    "many pixels": png_of(60_000, 60_000),
    "many scans": JPEG + b"\xff\xda" * 200,
}


def talk(asked: Any = "<image>What?", said: Any = "Noise.", **more) -> dict[str, Any]:
    """A LLaVA record with the picture good.png."""
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    return {"image": "good.png", "conversations": turns, **more}


def chat(*parts: Any, **more) -> dict[str, Any]:
    """A chat whose first message has these content parts."""
    return {"messages": [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": "Yes."}], **more}


def shown(image: Any) -> dict[str, Any]:
    return talk(image=image)


def url(address: str) -> dict[str, Any]:
    return chat({"type": "image_url", "image_url": {"url": address}})


def obelics(images: list, texts: list) -> dict[str, Any]:
    return {"images": images, "texts": texts}


def mmc4(**info) -> dict[str, Any]:
    entry = {"image_name": "good.png", "matched_text_index": 0, "matched_sim": 0.5} | info
    return {"text_list": ["One.", "Two."], "image_info": [entry]}


TEXT = {"type": "text", "text": "What?"}
RECORDS: dict[str, tuple[str, Any]] = {
    "not JSON": ("record", "{"),
    "a list": ("record", "[1]"),
    "a number": ("record", "3"),
    "NaN": ("record", '{"image": NaN}'),
    "a key twice": ("record", '{"image": "good.png", "image": "good.png"}'),
    "other fields": ("record", {"picture": "good.png"}),
    "no turns": ("record", {"conversations": []}),
    "turns that are no list": ("record", {"image": "good.png", "conversations": "<image>"}),
    "a turn that is no object": ("record", {"conversations": ["hello"]}),
    "an unknown speaker": ("record", {"conversations": [{"from": "humna", "value": "a"}]}),
    "a turn without text": ("record", {"conversations": [{"from": "human"}]}),
    "a turn with a number": ("record", talk(asked=3)),
    "an unknown field of a turn": ("record", {"conversations": [{"from": "human", "value": "a", "weight": 2}]}),
    "a place too many": ("places", talk("<image><image>What?")),
    "a place too few": ("places", talk("What?")),
    "a place without a picture": ("places", talk("<image>\nWhat?", image=None)),
    "places in two turns": ("places", talk("<image>What?", "<image>That.")),
    "a picture without a name": ("places", talk(image="")),
    "fewer pictures than places": ("places", talk("<image><image>What?", image=["good.png"])),
    "image and images": ("record", talk(images=["good.png"])),
    "a number as picture": ("record", shown(3)),
    "a list in a list": ("record", shown([["good.png"]])),
    "an object without bytes and path": ("record", shown({"bytes": None, "path": None})),
    "no such file": ("missing", shown("bad.png")),
    "a folder": ("missing", shown(".")),
    "a path out of the folder": ("outside", shown("../secret.png")),
    "a path around": ("outside", shown("sub/../../secret.png")),
    "an absolute path": ("outside", shown("/etc/hostname")),
    "a link out of the folder": ("outside", shown("link.png")),
    "an address": ("remote", shown("https://example.org/a.png")),
    "an address of a file": ("remote", shown("file:///etc/hostname")),
    "an address in a bucket": ("remote", shown("s3://bucket/a.png")),
    "a zero byte in a path": ("record", shown("a\0.png")),
    "a path that is too long": ("record", shown("a/" * 3000)),
    "a name that is too long": ("missing", shown("a" * 3000)),
    "no assistant": ("record", {"image": "good.png", "conversations": [{"from": "human", "value": "<image>a"}]}),
    "an answer without text": ("record", talk(said="")),
    "a system message later": ("record", talk() | {"conversations": [
        *talk()["conversations"], {"from": "system", "value": "Be."}, {"from": "gpt", "value": "Hm."}]}),
    "a system message that is no text": ("record", talk(system=3)),
    "preferences": ("record", talk(rejected="Nothing.")),
    "a video": ("record", talk(videos=["a.mp4"])),
    "a weight of the record": ("record", talk(weight=0.5)),
    "too many pictures": ("record", talk("<image>" * (MAX_PICTURES + 1), image=["good.png"] * (MAX_PICTURES + 1))),
    "a part that is no object": ("record", chat("What?")),
    "a part of another type": ("record", chat(TEXT, {"type": "input_audio", "input_audio": {}})),
    "a part without type": ("record", chat({"image": "good.png"})),
    "an unknown field of a part": ("record", chat({"type": "image", "path": "good.png", "crop": 3})),
    "two pictures in a part": ("record", chat({"type": "image", "path": "good.png", "url": "good.png"})),
    "a bare part": ("places", chat({"type": "image"}, TEXT)),
    "a picture that no part shows": ("places", chat(TEXT, images=["good.png"])),
    "a data URI of text": ("encoding", url("data:text/plain,hello")),
    "a data URI that is not base64": ("encoding", url("data:image/png;base64,*!*")),
    "a data URI cut short": ("encoding", url("data:image/png;base64,AAAAA")),
    "a data URI of something else": ("picture", url("data:image/png;base64," + base64.b64encode(b"text").decode())),
    "base64 that is a number": ("record", chat({"type": "image", "base64": 3})),
    "an image_url without an address": ("record", chat({"type": "image_url", "image_url": {"detail": "low"}})),
    "an unknown role": ("record", {"messages": [{"role": "usr", "content": "a"}]}),
    "a result without a call": ("record", {"messages": [{"role": "tool", "content": "a"}]}),
    "content that is a number": ("record", {"messages": [{"role": "user", "content": 3}]}),
    "lists of unequal lengths": ("places", obelics(["good.png"], [None, "a"])),
    "neither picture nor text": ("places", obelics([None, None], [None, "a"])),
    "picture and text": ("places", obelics(["good.png", None], ["a", "b"])),
    "an address without a copy": ("missing", obelics(["http://example.org/a", None], [None, "a"])),
    "a text that is a number": ("record", obelics([None, "good.png"], [3, None])),
    "a document without text": ("record", obelics(["good.png"], [None])),
    "a sentence that is not there": ("places", mmc4(matched_text_index=2)),
    "a sentence before the first": ("places", mmc4(matched_text_index=-1)),
    "a similarity that is a text": ("record", mmc4(matched_sim="high")),
    "a picture without name": ("record", mmc4(image_name=None)),
    "a sentence that is no text": ("record", mmc4() | {"text_list": [1, 2]}),
    "an answer that is true": ("record", {"imgname": "good.png", "query": "a", "label": True}),
    "no answer": ("record", {"imgname": "good.png", "query": "a", "label": []}),
    "an empty question": ("record", {"imgname": "good.png", "query": " ", "label": "3"}),
    "a question without a picture": ("missing", {"query": "a", "label": "3"}),
    "answers that are empty": ("record", {"image": "good.png", "question": "a", "answers": ["", "b"]}),
    "a question that is null": ("record", {"image": "good.png", "question": None, "answers": ["b"]}),
    "a sample longer than a row": ("too_long", talk("<image>" + "word " * 60)),
}  # fmt: skip


def tokenized(folder: pathlib.Path, file: str, **options):
    source = {"path": str(folder / file), "too_long": "refuse", **options}
    return tokenize_pictures("shown", data_config(folder, source), load_tokenizer("bytes"))[0]


def refused(folder: pathlib.Path, file: str, **options) -> tuple[dict[str, int], int]:
    """The number of refused samples by reason, and of good ones, where one is malformed. Its error stops a source that
    skips nothing."""
    counts = tokenized(folder, file, malformed="skip", **options).meta["samples"]
    (problem,) = counts["problems"]
    assert problem["reason"] and len(problem["reason"]) < 1_000
    with pytest.raises(InputError) as stopped:
        tokenized(folder, file, malformed="stop", **options)
    assert problem["reason"] in str(stopped.value)
    assert counts["refused"].keys() <= set(REASONS)
    return counts["refused"], counts["samples"]


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    inside = tmp_path / "in"
    (inside / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PNG)
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "good.png").write_bytes(PNG)
    return inside


@pytest.mark.parametrize("case", RECORDS)
def test_a_malformed_record_is_skipped_and_counted_or_stops(case, folder):
    reason, record = RECORDS[case]
    line = record if isinstance(record, str) else json.dumps(record)
    (folder / "first.jsonl").write_text(json.dumps(talk()) + "\n")
    (folder / "second.jsonl").write_text(line + "\n")
    assert refused(folder, "*.jsonl") == ({reason: 1}, 1)


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_a_bad_picture_is_found_when_data_is_prepared(case, folder):
    (folder / "bad.png").write_bytes(BAD_PICTURES[case])
    records = [shown("good.png"), shown("bad.png"), shown("good.png")]
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert refused(folder, "a.jsonl") == ({"picture": 1}, 2)


def test_one_bad_picture_refuses_each_sample_that_shows_it(folder):
    (folder / "bad.png").write_bytes(b"text")
    records = [shown("bad.png"), shown("good.png"), shown("bad.png")]
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    counts = tokenized(folder, "a.jsonl", malformed="skip").meta["samples"]
    assert counts["refused"] == {"picture": 2} and counts["samples"] == 1 and counts["pictures"] == 1
    assert [problem["line"] for problem in counts["problems"]] == [1, 3]


# ---- archives and tables ---------------------------------------------------------------------------------------------

RECORD = json.dumps({"conversations": talk()["conversations"]}).encode()
GOOD = [("0.png", PNG), ("0.json", RECORD)]


def archive(folder: pathlib.Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> str:
    with tarfile.open(folder / "a.tar", "w") as found:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            found.addfile(info, io.BytesIO(data))
    return "a.tar"


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/hostname"
    return info


MEMBERS: dict[str, tuple[str, list[tuple[str | tarfile.TarInfo, bytes]]]] = {
    "a symbolic link": ("member", [(link("1.png"), b""), ("1.json", RECORD)]),
    "a hard link": ("member", [(link("1.png", tarfile.LNKTYPE), b""), ("1.json", RECORD)]),
    "a device": ("member", [(link("1.png", tarfile.CHRTYPE), b""), ("1.json", RECORD)]),
    "an absolute name": ("member", [("/1.png", PNG), ("/1.json", RECORD)]),
    "a name that leads out": ("member", [("../1.png", PNG), ("../1.json", RECORD)]),
    "a name with backslashes": ("member", [("..\\1.png", PNG), ("..\\1.json", RECORD)]),
    "a sample twice": ("member", [("1.png", PNG), ("1.json", RECORD), *GOOD]),
    "a member twice": ("member", [("1.png", PNG), ("1.png", PNG), ("1.json", RECORD)]),
    "no record": ("record", [("1.png", PNG)]),
    "a record that is not JSON": ("record", [("1.png", PNG), ("1.json", b"{")]),
    "a record without pictures": ("places", [("1.json", RECORD)]),
    "too many pictures": ("places", [("1.png", PNG), ("1.b.png", PNG), ("1.json", RECORD)]),
    "a damaged picture": ("picture", [("1.png", PNG[:40]), ("1.json", RECORD)]),
    "a caption that is not UTF-8": ("record", [("1.png", PNG), ("1.txt", b"\xff")]),
    "a caption without a picture": ("missing", [("1.txt", b"Noise.")]),
    "an empty caption": ("record", [("1.png", PNG), ("1.txt", b" ")]),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_a_malformed_sample_of_an_archive(case, folder):
    reason, members = MEMBERS[case]
    file = archive(folder, [*GOOD, *members])
    if "caption" in case:  # in a file of its own: the first record of a file determines its format
        (folder / file).rename(folder / "b.tar")
        archive(folder, members)
        (folder / "a.tar").rename(folder / "c.tar")
        archive(folder, GOOD)
        (folder / "b.tar").unlink()
        file = "*.tar"
    assert refused(folder, file) == ({reason: 1}, 2 if case == "a sample twice" else 1)


def damaged(folder: pathlib.Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return name


def table(folder: pathlib.Path, **columns) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
    data = (folder / "t.parquet").read_bytes()
    (folder / "t.parquet").unlink()
    return data


FILES: dict[str, Callable[[pathlib.Path], str]] = {
    "an empty file": lambda f: damaged(f, "a.jsonl", b""),
    "an empty list": lambda f: damaged(f, "a.json", b"[]"),
    "a damaged list": lambda f: damaged(f, "a.json", b'[{"a": 1}, {'),
    "an empty archive": lambda f: damaged(f, "a.tar", b"\0" * 1024),
    "noise as archive": lambda f: damaged(f, "a.tar", bytes(range(256)) * 8),
    "a compressed archive": lambda f: damaged(f, "a.tar", b"\x1f\x8b\x08" + b"\0" * 600),
    "an archive cut short": lambda f: damaged(f, "a.tar", (f / archive(f, GOOD)).read_bytes()[:700]),
    "noise as table": lambda f: damaged(f, "a.parquet", bytes(range(256)) * 8),
    "a table cut short": lambda f: damaged(f, "a.parquet", table(f, query=["a"], label=["b"])[:-30]),
    "a table without rows": lambda f: damaged(f, "a.parquet", table(f, query=pyarrow.array([], pyarrow.string()))),
    "a table with other columns": lambda f: damaged(f, "a.parquet", table(f, first=["a"], second=["b"])),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("malformed", ["stop", "skip"])
def test_a_file_without_a_sample_that_can_be_used_is_one_error(case, malformed, folder):
    with pytest.raises(InputError, match=r"a\.(json|jsonl|tar|parquet)|no sample can be used"):
        tokenized(folder, FILES[case](folder), malformed=malformed)


def test_rows_that_are_too_short_for_any_picture_are_refused(folder):
    (folder / "a.jsonl").write_text(json.dumps(talk()) + "\n")
    source = {"path": str(folder / "a.jsonl")}
    config = data_config(folder, source, tiles={"tile_size": 336}, sequence_length=128)
    with pytest.raises(
        InputError, match="rows of 128 tokens, 0 tiles have no room for a picture of one tile, 147 tokens"
    ):
        tokenize_pictures("shown", config, load_tokenizer("bytes"))
