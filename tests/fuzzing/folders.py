"""Models on disk as targets: Hugging Face folders, their config files, and our checkpoints."""

import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
from unittest import mock

import numpy as np
import tensorstore
from hypothesis import strategies as st

from maverick_jax import pretrained
from maverick_jax.checkpoint import contents
from maverick_jax.checkpoint import import_stream as importing
from maverick_jax.checkpoint.names import MODEL
from maverick_jax.checkpoint.readers import require_undamaged
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.files import read_json
from maverick_jax.huggingface import carried
from maverick_jax.huggingface import config as huggingface_config
from maverick_jax.huggingface import generation_config as generation
from maverick_jax.model_source import CHECKPOINTS, open_source
from maverick_jax.pretrained import import_checkpoint, load_pretrained, save_pretrained
from maverick_jax.text import load_tokenizer
from tests.fuzzing.harness import Target
from tests.fuzzing.mutations import changed, damaged, dumps, json_files
from tests.maverick_jax.huggingface.test_reader_malformed import QUANTIZED, WEIGHTS
from tests.parity.oracle import NO_TOKEN_IDS, case, config_json, variant

INDEX = "model.safetensors.index.json"
QUANTIZATION = QUANTIZED | {
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": {"dynamic": True}}},
    "ignore": ["lm_head"],
}
GENERATION = {"bos_token_id": 3, "eos_token_id": [1, 2], "pad_token_id": 4, "do_sample": True, "temperature": 0.6,
              "top_p": 0.9, "top_k": 5, "max_new_tokens": 9}  # fmt: skip


_trace = pretrained.abstract_model


@functools.lru_cache(maxsize=512)
def _traced(config: str, mesh, rules):
    return _trace(ModelConfig.model_validate_json(config), mesh, rules)


def _shapes_once():
    """Caches the shapes of models, because tracing takes most of the time and most examples have the same model."""
    return mock.patch.object(
        pretrained, "abstract_model", lambda config, mesh, rules=None: _traced(config.model_dump_json(), mesh, rules)
    )


# ---- Hugging Face folders ----------------------------------------------------------------------------------------


def folder_target(scratch: pathlib.Path) -> Target:
    """Opens a folder as `load_pretrained` does, reads parts of it, and runs an import up to its first write."""
    text, images = case("three_layers").ours, case("maverick_with_images").ours
    goods = [scratch / "text", scratch / "sharded", scratch / "images"]
    save_pretrained(text, goods[0], dtype="float32")
    save_pretrained(text, goods[1], max_shard_gb=3e-5)
    save_pretrained(images, goods[2], max_shard_gb=2e-4)
    for good in goods:
        (good / generation.FILE).write_text(json.dumps(GENERATION))
    damages = st.sampled_from(goods).flatmap(
        lambda good: st.tuples(st.just(good), st.lists(_file_damage(good), min_size=1, max_size=2))
    )
    return Target("folder", damages, lambda damage: _read_folder(damage[0], damage[1], scratch / "copy"), seconds=4)


def _file_damage(good: pathlib.Path) -> st.SearchStrategy:
    """(Name of a file in the folder, its new bytes or the kind of damage)."""
    names = sorted(path.name for path in good.iterdir())
    contents_of = {name: (good / name).read_bytes() for name in names}
    shards = [name for name in names if name.endswith(".safetensors")]

    def of(name: str) -> st.SearchStrategy:
        made = json_files(json.loads(contents_of[name])) if name.endswith(".json") else _tensors_file(contents_of[name])
        whole = st.sampled_from(["link out", "link in", "folder", "pipe", "gone", "copy", "empty"])
        return st.tuples(st.just(name), st.one_of(made, made, made, made, whole))

    return st.sampled_from([*names, *shards[:2], "config.json"]).flatmap(of)


@st.composite
def _tensors_file(draw, data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    match draw(st.sampled_from(["header", "header", "header", "bytes", "size"])):
        case "header":
            header = dumps(draw(changed(json.loads(data[8:end])))).encode("utf-8", "surrogatepass")
            said = len(header) if draw(st.integers(0, 9)) else draw(st.sampled_from([0, 1, 2**40, 2**63, 2**64 - 1]))
            return said.to_bytes(8, "little") + header + data[end:]
        case "bytes":
            return draw(damaged(data, within=end + 64))
        case _:
            return draw(st.sampled_from([data[:end], data[:-1], data + b"\0", data[:9], data + data, data[end:]]))


def _read_folder(good: pathlib.Path, damage: list[tuple[str, bytes | str]], folder: pathlib.Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    for name, what in damage:
        _apply(folder / name, what)
    with _shapes_once(), mock.patch.object(importing, "import_arrays") as taken:
        for reader in open_source(folder).readers().values():
            reader(tuple(slice(0, 1) for _ in reader.shape), np.dtype(np.float32))
        import_checkpoint(folder, folder.parent / "never")
    assert taken.call_count == 1


def _apply(path: pathlib.Path, what: bytes | str) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    if isinstance(what, bytes):
        path.unlink(missing_ok=True)
        path.write_bytes(what)
        return
    if what == "copy":
        shutil.copy(path, path.with_name("other.safetensors")) if path.is_file() else None
        return
    outside = path.parent.parent / "text" / path.name
    path.unlink(missing_ok=True)
    match what:
        case "link out":
            path.symlink_to(outside)
        case "link in":
            path.symlink_to("config.json")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "empty":
            path.touch()


# ---- config files --------------------------------------------------------------------------------------------------


def config_target(scratch: pathlib.Path) -> Target:
    """config.json with quantization_config, read from a file. Accepted configs are written and read again."""
    text = {"max_position_embeddings": 64, **config_json(case("three_layers").config)}
    scaled = config_json(
        variant(use_qk_norm=True, rope_scaling={"factor": 16.0, "original_max_position_embeddings": 32})
    )
    images = config_json(case("maverick_with_images").config)
    old = {
        k: v for k, v in scaled.items() if k not in ("rope_parameters", "layer_types", "moe_layers", "no_rope_layers")
    }
    bases = [text, scaled, old, images, text | {"quantization_config": QUANTIZATION}]
    examples = st.sampled_from(bases).flatmap(lambda base: json_files(base, 4))
    return Target("config", examples, lambda data: _read_config(data, scratch / "config.json"))


def _read_config(data: bytes, path: pathlib.Path) -> None:
    path.write_bytes(data)
    config = huggingface_config.read_config(read_json(path), str(path))
    assert config.num_parameters() > 0 and len(config.period) <= config.num_hidden_layers + 1
    again = huggingface_config.write_config(config, "float32", NO_TOKEN_IDS, 1 << 20)
    assert huggingface_config.read_config(json.loads(json.dumps(again)), "ours") == config


def generation_target(scratch: pathlib.Path) -> Target:
    """generation_config.json, read and copied to an export."""
    config, tokenizer = case("three_layers").config, load_tokenizer("bytes")

    def read(data: bytes) -> None:
        (scratch / generation.FILE).write_bytes(data)
        found = generation.generation_config(config, tokenizer, carried.read(scratch, generation.FILE), None)
        json.dumps(found, allow_nan=False)

    return Target("generation", json_files(GENERATION), read)


# ---- our own checkpoints ---------------------------------------------------------------------------------------------


def checkpoint_target(scratch: pathlib.Path) -> Target:
    """A checkpoint with damaged files, or with wrong metadata and a valid digest."""
    good = scratch / "run"
    save_pretrained(case("three_layers").ours, scratch / "for_run", dtype="float32")
    import_checkpoint(scratch / "for_run", good)
    step = good / CHECKPOINTS / "0"
    files = sorted(str(path.relative_to(step)) for path in step.rglob("*") if path.is_file())
    meta = json.loads((step / "meta" / "data.json").read_text())
    meta.pop("digest")
    arrays = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{step}/arrays/"}).result()
    keys = sorted(key.decode() for key in arrays.list().result() if key.endswith(b"zarr.json"))
    records = {key: json.loads(arrays[key]) for key in keys}
    likely = ["meta/data.json", "arrays/manifest.ocdbt", "arrays/_METADATA"] * 3
    of_file = lambda name: st.tuples(st.just(name), damaged((step / name).read_bytes()))
    of_record = lambda key: st.tuples(st.just(f"record {key}"), json_files(records[key], 2))
    same_shape = lambda key: _reshaped(key, meta, records[key])
    damage = st.one_of(
        st.tuples(st.just("meta"), changed(meta)),
        st.tuples(st.just("meta"), changed(meta, 1)),
        st.tuples(st.just("model"), changed(meta["model"])),
        st.sampled_from([*files, *likely]).flatmap(of_file),
        st.sampled_from(keys).flatmap(of_record),
        st.sampled_from(keys).flatmap(same_shape),
    )
    taken = [hashlib.sha256(a.tobytes()).hexdigest() for a in _numbers(good)]
    return Target(
        "checkpoint", damage, lambda d: _read_checkpoint(good, d[0], d[1], scratch / "copied", taken), 4, 1024
    )


def _reshaped(key: str, meta: dict, record: dict) -> st.SearchStrategy:
    """An array whose record and metadata agree on a wrong shape."""
    name = key.removesuffix("/zarr.json")

    def change(shape: list[int], chunk: list[int]) -> tuple[str, dict]:
        altered = json.loads(json.dumps(meta))
        altered["arrays"][name]["shape"] = shape
        grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
        return f"record {key}", {"meta": altered, "record": record | {"shape": shape, "chunk_grid": grid}}

    sizes = st.lists(st.sampled_from([0, 1, 2, 3, 32, 2**20, 2**40, 2**62]), min_size=1, max_size=4)
    return sizes.flatmap(lambda shape: st.builds(change, st.just(shape), st.just([max(1, n) for n in shape])))


def _read_checkpoint(good: pathlib.Path, what: str, damage, run: pathlib.Path, taken: list[str]) -> bool:
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(good, run)
    step = run / CHECKPOINTS / "0"
    if what in ("meta", "model"):
        _seal(step, damage if what == "meta" else json.loads((step / "meta/data.json").read_text()) | {"model": damage})
    elif what.startswith("record "):
        if isinstance(damage, dict):
            _seal(step, damage["meta"])
            damage = json.dumps(damage["record"]).encode()
        base = {"driver": "ocdbt", "base": f"file://{step}/arrays/"}
        tensorstore.KvStore.open(base).result()[what.removeprefix("record ")] = damage
    else:
        (step / what).write_bytes(damage)
    store = CheckpointStore(run / CHECKPOINTS, read_only=True)
    claimed = sum(math.prod(entry["shape"]) for entry in store.meta(0)["arrays"].values())
    if claimed < 10**8:  # larger claims take too long
        assert all(isinstance(problem, str) for problem in store.verify(0))
    with _shapes_once(), mock.patch.object(importing, "import_arrays"):
        numbers = [hashlib.sha256(a.tobytes()).hexdigest() for a in _numbers(run)]
        load_pretrained(run)
        import_checkpoint(run, run.parent / "never")
    assert numbers == taken or what in ("meta", "model"), "damage was read as if it were none"
    return True


def _seal(step: pathlib.Path, meta) -> None:
    """Writes a valid digest, because the digest protects only against accidents."""
    try:
        meta = json.loads(dumps(meta))
    except (ValueError, RecursionError):
        (step / "meta" / "data.json").write_text(dumps(meta), "utf-8", "surrogatepass")
        return
    if isinstance(meta, dict):
        meta.pop("digest", None)
        meta["digest"] = contents._digest(meta)
    (step / "meta" / "data.json").write_text(json.dumps(meta))


def _numbers(run: pathlib.Path) -> list[np.ndarray]:
    """All parameters of the run, after verification."""
    source = open_source(run)
    readers = source.readers()
    assert all(name and not name.startswith(MODEL) for name in readers)
    whole = lambda reader: reader(tuple(slice(0, size) for size in reader.shape), np.dtype(np.float32))
    found = [whole(readers[name]) for name in sorted(readers)]
    require_undamaged(readers)
    return found
