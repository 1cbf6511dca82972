"""Malformed checkpoints: each is refused with a typed error, in bounded memory, even if its digest is right (the digest
detects accidents only; it is not a signature). One entry of `CASES` each."""

import json
import pathlib
import shutil
from collections.abc import Callable

import pytest
import tensorstore

from maverick_jax.checkpoint import contents
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import MaverickError, NoRestorableCheckpoint
from maverick_jax.pretrained import import_checkpoint, load_pretrained, save_pretrained
from tests.parity.oracle import case

META, MANIFEST = "meta/data.json", "arrays/manifest.ocdbt"
NORM = "model/norm"
Damage = Callable[[pathlib.Path], object]


def meta(change: Callable[[dict], object]) -> Damage:
    """Changed metadata with a correct digest."""

    def damage(step):
        found = json.loads((step / META).read_text())
        del found["digest"]
        change(found)
        (step / META).write_text(json.dumps(found | {"digest": contents._digest(found)}))

    return damage


def model(**changes) -> Damage:
    return meta(lambda found: found["model"].update(changes))


def entry(**changes) -> Damage:
    return meta(lambda found: found["arrays"][NORM].update(changes))


def record(change: Callable[[dict], dict | bytes], *also: Damage) -> Damage:
    """A changed Zarr record of one array."""

    def damage(step):
        for other in also:
            other(step)
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{step}/arrays/"}).result()
        changed = change(json.loads(store[f"{NORM}/zarr.json"]))
        store[f"{NORM}/zarr.json"] = changed if isinstance(changed, bytes) else json.dumps(changed).encode()

    return damage


def chunks(*size: int) -> Callable[[dict], dict]:
    return lambda found: found | {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(size)}}}


def content(name: str, data: bytes) -> Damage:
    return lambda step: (step / name).write_bytes(data)


CASES: dict[str, tuple[Damage, str]] = {
    "no metadata": (lambda step: (step / META).unlink(), "cannot be read"),
    "metadata is no JSON": (content(META, b"{"), "cannot be read"),
    "metadata is a list": (content(META, b"[]"), "metadata is malformed"),
    "metadata nested deeply": (content(META, b'{"a":' * 100_000), "cannot be read"),
    "metadata of another digest": (content(META, b'{"arrays": {}, "digest": "0"}'), "differs from what was saved"),
    "no step": (meta(lambda found: found.pop("step")), "saved as step None"),
    "another step": (meta(lambda found: found.update(step=7)), "saved as step 7"),
    "arrays are a list": (meta(lambda found: found.update(arrays=[])), "metadata is malformed"),
    "an array that is text": (meta(lambda found: found["arrays"].update(x="y")), "metadata is malformed: arrays: 'x'"),
    "an array without a checksum": (
        meta(lambda found: found["arrays"][NORM].pop("checksum")),
        f"malformed: arrays: '{NORM}'",
    ),
    "an array with a key too many": (entry(driver="file"), f"malformed: arrays: '{NORM}'"),
    "a negative size": (entry(shape=[-32]), f"malformed: arrays: '{NORM}'"),
    "a size that is text": (entry(shape=["32"]), f"malformed: arrays: '{NORM}'"),
    "a size of 2^70": (entry(shape=[2**70]), f"malformed: arrays: '{NORM}'"),
    "a checksum that is a number": (entry(checksum=7), f"malformed: arrays: '{NORM}'"),
    "another checksum": (entry(checksum="0" * 16), "differs from what was saved"),
    "a type nobody knows": (entry(dtype="float31"), "float31"),
    "another shape than is stored": (entry(shape=[16, 2]), "expected float32[16, 2]"),
    "an array that is not stored": (
        meta(lambda found: found["arrays"].update({"model/x": found["arrays"][NORM]})),
        "model/x",
    ),
    "an array is missing": (meta(lambda found: found["arrays"].pop(NORM)), "do not match its model: norm"),
    "a path out of the checkpoint": (
        meta(lambda found: found["arrays"].update({"model/../../../x": found["arrays"][NORM]})),
        "model/../../../x",
    ),
    "no model": (meta(lambda found: found.pop("model")), "its metadata has no model config"),
    "a model that is a list": (meta(lambda found: found.update(model=[])), "metadata: model"),
    "a model of another width": (model(hidden_size=64), "do not match its model"),
    "a model of 10^12 layers": (model(num_hidden_layers=10**12), "at most 4096 layers"),
    "a model of more layers than arrays": (
        model(num_hidden_layers=4001, interleave_moe_layer_step=4001),
        "too few for",
    ),
    "a model whose intervals never meet": (
        model(num_hidden_layers=4000, interleave_moe_layer_step=10**9 + 7, no_rope_layer_interval=10**9 + 9),
        "too few for",
    ),
    "a key that no model has": (model(python="import os"), "model.python"),
    "arrays' index cut off": (content(MANIFEST, b"\0" * 40), "cannot be read"),
    "arrays' index gone": (lambda step: (step / MANIFEST).unlink(), "cannot be read"),
    "a record that is no JSON": (record(lambda found: b"{"), "cannot be read"),
    "a record nested deeply": (record(lambda found: b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "cannot be read"),
    "a record nested deeply in its grid": (
        record(lambda found: json.dumps(found)[:-1].encode() + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "cannot be read",
    ),
    "a record of 2 MB": (record(lambda found: json.dumps(found).encode() + b" " * 2**21), "its record has"),
    "a record of another format": (record(lambda found: {"zarr_format": 2}), "cannot be read"),
    "a record with a codec nobody knows": (record(lambda found: found | {"codecs": [{"name": "x"}]}), "cannot be read"),
    "a chunk of 2^50 numbers": (record(chunks(2**50)), "in chunks of"),
    "a chunk whose size overflows": (record(chunks(2**62)), NORM),
    "an array and a chunk of 2^40 numbers": (
        record(lambda found: chunks(2**40)(found | {"shape": [2**40]}), entry(shape=[2**40])),
        "in chunks of",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("good")
    save_pretrained(case("three_layers").ours, path / "folder", dtype="float32")
    import_checkpoint(path / "folder", path / "run")
    return path / "run"


@pytest.mark.parametrize("name", CASES)
def test_malformed_checkpoint_is_refused(name, good, tmp_path):
    damage, message = CASES[name]
    run = pathlib.Path(shutil.copytree(good, tmp_path / "run"))
    damage(run / "checkpoints" / "0")
    with pytest.raises(MaverickError) as error:
        import_checkpoint(run, tmp_path / "out")
    assert message in str(error.value) and len(str(error.value)) < 10_000
    assert not (tmp_path / "out").exists()


def test_arrays_that_orbax_would_skip_are_an_error(good, tmp_path):
    run = pathlib.Path(shutil.copytree(good, tmp_path / "run"))
    records = run / "checkpoints" / "0" / "arrays" / "_METADATA"
    records.write_text(records.read_text().replace('"skip_deserialize": false', '"skip_deserialize": true', 1))
    assert CheckpointStore(run / "checkpoints", read_only=True).verify(0) == []  # other readers do not use this record
    with pytest.raises(NoRestorableCheckpoint):
        load_pretrained(run)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("a chunk", "a record"))])
def test_malformed_arrays_are_refused_before_orbax_reads_them(name, good, tmp_path):
    """TensorStore, which Orbax uses to restore, would end the process for some of these."""
    run = pathlib.Path(shutil.copytree(good, tmp_path / "run"))
    CASES[name][0](run / "checkpoints" / "0")
    with pytest.raises(NoRestorableCheckpoint):
        load_pretrained(run)
