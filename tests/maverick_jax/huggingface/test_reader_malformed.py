"""Malformed and hostile folders: each is refused with an InputError, quickly, in little memory, and before anything is
written. One entry of `CASES` each."""

import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy

from maverick_jax.errors import InputError
from maverick_jax.pretrained import import_checkpoint, save_pretrained
from tests.parity.oracle import case, config_json

SECONDS, BYTES = 2, 200 * 2**20
MODEL, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
NORM = "model.norm.weight"

Damage = Callable[[pathlib.Path], object]


# ---- ways to damage a good folder ----------------------------------------------------------------------------------


def raw(content: bytes, length: int | None = None, size: int | None = None) -> Damage:
    """A tensor file with these header bytes, the declared header `length`, and the `size` of the (sparse) file."""

    def damage(folder):
        with (folder / MODEL).open("wb") as file:
            file.write((len(content) if length is None else length).to_bytes(8, "little") + content)
            if size is not None:
                file.truncate(size)

    return damage


def header(**tensors) -> Damage:
    """A file of 64 bytes of data whose header repeats this."""
    text = json.dumps(tensors).encode()
    return raw(text, size=8 + len(text) + 64)


def entry(shape, offsets, dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def tensors(change: Callable[[dict], None]) -> Damage:
    """A well-formed file with changed tensors."""

    def damage(folder):
        found = safetensors.numpy.load_file(folder / MODEL)
        change(found)
        safetensors.numpy.save_file(found, folder / MODEL)

    return damage


def index(weight_map, also: Damage | None = None) -> Damage:
    def damage(folder):
        if also:
            also(folder)
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return damage


def text(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def config(**changes) -> Damage:
    def damage(folder):
        path = folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def vision(changes: dict) -> Damage:
    """A multimodal config.json with changes to its image encoder."""

    def damage(folder):
        given = config_json(case("maverick_with_images").config)
        (folder / CONFIG).write_text(json.dumps(given | {"vision_config": given["vision_config"] | changes}))

    return damage


def config_number(key: str, literal: str) -> Damage:
    """A number that Python's JSON writer does not produce."""

    def damage(folder):
        path = folder / CONFIG
        values = json.loads(path.read_text())
        del values[key]
        path.write_text(f'{{"{key}": {literal}, {json.dumps(values)[1:]}')

    return damage


WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
QUANTIZED = {"quant_method": "compressed-tensors", "format": "float-quantized"}


def quantized(weights: dict | None = None, group: dict | None = None, **changes) -> Damage:
    groups = {"group_0": {"weights": WEIGHTS | (weights or {}), "targets": ["Linear"], **(group or {})}}
    return config(quantization_config=QUANTIZED | {"config_groups": groups} | changes)


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def rewrite_header(change: Callable[[dict], None]) -> Damage:
    """The same data under a header changed by `change`."""

    def damage(folder):
        data = (folder / MODEL).read_bytes()
        length = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + length])
        change(found)
        made = json.dumps(found).encode()
        (folder / MODEL).write_bytes(len(made).to_bytes(8, "little") + made + data[8 + length :])

    return damage


def as_fp8(scale: Callable[[dict, str], None]) -> Damage:
    """One weight in 8-bit floating point; `scale` changes its scale."""
    name = "model.layers.0.self_attn.q_proj.weight"

    def change(found):
        found[name + "_scale"] = np.ones((32, 1), np.float32)
        scale(found, name + "_scale")

    def mark(found):
        first, last = found[name]["data_offsets"]
        assert last - first == 4 * 32 * 32
        found[name] = entry([32, 32], [first, first + 1024], "F8_E4M3")
        found["model.filler"] = entry([3072], [first + 1024, last], "U8")

    return both(tensors(change), rewrite_header(mark))


def link(folder):
    shutil.move(folder / MODEL, folder.parent / "elsewhere.safetensors")
    (folder / MODEL).symlink_to(folder.parent / "elsewhere.safetensors")


def pipe(folder):
    os.mkfifo(folder / "pipe.safetensors")
    index({NORM: "pipe.safetensors"})(folder)


def twice(folder):
    shutil.copy(folder / MODEL, folder / "b.safetensors")
    names = list(safetensors.numpy.load_file(folder / MODEL))
    index(dict.fromkeys(names[:-1], MODEL) | {names[-1]: "b.safetensors"})(folder)


def elsewhere(folder):
    names = list(safetensors.numpy.load_file(folder / MODEL))
    index({name: MODEL for name in names} | {"model.gone": MODEL})(folder)


def unlisted(folder):
    index({name: MODEL for name in list(safetensors.numpy.load_file(folder / MODEL))[1:]})(folder)


HUGE = 2**62
PAIR = {"a": entry([8], [0, 32]), "b": entry([8], [32, 64])}

CASES: dict[str, tuple[Damage, str]] = {
    # tensor files
    "no bytes": (text(MODEL, b""), "0 bytes"),
    "seven bytes": (text(MODEL, b"1234567"), "7 bytes"),
    "header of 2^62 bytes": (raw(b"{}", HUGE), "header of"),
    "header longer than the file": (raw(b"{}", 3), "header of 3 bytes in a file of 10"),
    "header of 101 MB": (raw(b"{}", 101 * 10**6, 102 * 10**6), "header of"),
    "header of 99 MB": (raw(b"{}", 99 * 10**6, 100 * 10**6), "header of"),
    "header nested deeply": (raw(b"{" + b'"a":{' * 50_000), "not a readable"),
    "header of a million lists": (raw(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"), "too many lists and objects"),
    "header of two million numbers": (raw(b'{"a":[' + b"1," * 2_000_000 + b"1]}"), "a: expected dtype"),
    "header is not JSON": (raw(b"{x}"), "not a readable"),
    "header is cut off": (raw(b'{"a": {"dtype": "F32"'), "not a readable"),
    "header is a list": (raw(b"[]"), "does not begin with {"),
    "header begins with a space": (raw(b" {}"), "does not begin with {"),
    "header is not UTF-8": (raw(b'{"\xff\xfe": 1}'), "not a readable"),
    "header with NaN": (raw(b'{"a": NaN}'), "NaN is not a JSON number"),
    "header with a duplicate tensor": (raw(b'{"a": 1, "a": 2}'), "'a' is given twice"),
    "header with a duplicate type": (raw(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' is given twice"),
    "header with 100000 duplicates": (raw(b'{"a":1' + b',"a":1' * 100_000 + b"}"), "'a' is given twice"),
    "metadata is a list": (raw(b'{"__metadata__": []}'), "__metadata__"),
    "metadata holds a number": (raw(b'{"__metadata__": {"format": 1}}'), "__metadata__"),
    "tensor is a number": (header(a=1), "a: expected dtype, shape"),
    "tensor without offsets": (header(a={"dtype": "F32", "shape": [16]}), "a: expected dtype, shape"),
    "tensor with a key too many": (header(a=entry([16], [0, 64], strides=[4])), "a: expected dtype, shape"),
    "unknown type": (header(a=entry([16], [0, 64], "F31")), "unknown type 'F31'"),
    "type is a list": (header(a=entry([16], [0, 64], ["F32"])), "unknown type"),
    "shape is a number": (header(a=entry(16, [0, 64])), "shape 16"),
    "negative size": (header(a=entry([-4, -4], [0, 64])), "shape [-4, -4]"),
    "fractional size": (header(a=entry([16.0], [0, 64])), "shape [16.0]"),
    "size is true": (header(a=entry([True, 16], [0, 64])), "shape [True, 16]"),
    "size of 2^70": (header(a=entry([2**70], [0, 64])), "shape [1180591620717411303424]"),
    "nine dimensions": (header(a=entry([2, 2, 2, 2, 1, 1, 1, 1, 1], [0, 64])), "up to 8"),
    "sizes whose product overflows": (header(a=entry([2**33, 2**33, 2**33], [0, 64])), "64 bytes for F32"),
    "nothing of 2^50 columns": (header(a=entry([0, 2**50], [0, 0]), b=entry([16], [0, 64])), "shape [0, "),
    "no elements": (header(a=entry([0], [0, 0]), b=entry([16], [0, 64])), "shape [0]"),
    "one offset": (header(a=entry([16], [64])), "data_offsets [64]"),
    "negative offset": (header(a=entry([16], [-64, 0])), "data_offsets [-64, 0]"),
    "offset is text": (header(a=entry([16], ["0", "64"])), "data_offsets ['0', '64']"),
    "offsets the wrong way round": (header(a=entry([16], [64, 0])), "-64 bytes for F32"),
    "more bytes than elements": (header(a=entry([8], [0, 64])), "64 bytes for F32 [8]"),
    "fewer bytes than elements": (header(a=entry([32], [0, 64])), "64 bytes for F32 [32]"),
    "tensors that overlap": (header(a=entry([12], [0, 48]), b=entry([8], [32, 64])), "b begins at byte 32"),
    "two tensors in one place": (header(a=entry([16], [0, 64]), b=entry([16], [0, 64])), "b begins at byte 0"),
    "a hole between tensors": (header(a=entry([4], [0, 16]), b=entry([8], [32, 64])), "b begins at byte 32"),
    "a hole before tensors": (header(a=entry([8], [32, 64])), "a begins at byte 32"),
    "bytes after the tensors": (header(a=entry([8], [0, 32])), "its tensors end at byte"),
    "tensors beyond the file": (header(**PAIR, c=entry([8], [64, 96])), "its tensors end at byte"),
    "data cut off": (lambda f: os.truncate(f / MODEL, (f / MODEL).stat().st_size - 1), "its tensors end at byte"),
    "name that is a path": (header(**{"../../etc/passwd": entry([16], [0, 64])}), "is not a valid tensor name"),
    "name with an escape sequence": (header(**{"a\x1b[2J": entry([16], [0, 64])}), "is not a valid tensor name"),
    "empty name": (header(**{"": entry([16], [0, 64])}), "is not a valid tensor name"),
    "name of 10000 letters": (header(**{"a" * 10_000: entry([16], [0, 64])}), "is not a valid tensor name"),
    # sets of tensors
    "a tensor is missing": (tensors(lambda t: t.pop(NORM)), f"missing: {NORM} [32]"),
    "a tensor too many": (tensors(lambda t: t.update({"model.x": np.ones(3)})), "unexpected: model.x [3]"),
    "5000 tensors too many": (tensors(lambda t: t.update({f"m.{i}": np.ones(1) for i in range(5000)})), "4980 more"),
    "a tensor of another shape": (tensors(lambda t: t.update({NORM: np.ones(31, "f4")})), "[31]; config.json implies"),
    "a transposed tensor": (tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.copy()})), "shape:"),
    "a tensor of integers": (tensors(lambda t: t.update({NORM: np.ones(32, "i8")})), f"type: {NORM} is I64"),
    # the index
    "index: a path out of the folder": (index({NORM: "../model.safetensors"}), "is not a file name"),
    "index: an absolute path": (index({NORM: "/etc/passwd"}), "is not a file name"),
    "index: a folder of its own": (index({NORM: "sub/model.safetensors"}), "is not a file name"),
    "index: a line break": (index({NORM: "model.safetensors\n"}), "is not a file name"),
    "index: a zero byte": (index({NORM: "model\0.safetensors"}), "is not a file name"),
    "index: another ending": (index({NORM: "model.bin"}), "is not a file name"),
    "index: a number": (index({NORM: 7}), "7 is not a file name"),
    "index: a list of files": (index({NORM: [MODEL]}), "is not a file name"),
    "index: a file that is not there": (index({NORM: "b.safetensors"}), "no such file"),
    "index: a folder as a file": (index({NORM: "d.safetensors"}, lambda f: (f / "d.safetensors").mkdir()), "no such"),
    "index: a pipe": (pipe, "no such file"),
    "index: no map": (text(INDEX, "{}"), "expected `weight_map`"),
    "index: a list as map": (index([MODEL]), "expected `weight_map`"),
    "index: an empty map": (index({}), "expected `weight_map`"),
    "index: no JSON": (text(INDEX, "{"), "not valid JSON"),
    "index: a tensor twice": (text(INDEX, f'{{"weight_map": {{"a": "{MODEL}", "a": "{MODEL}"}}}}'), "given twice"),
    "index: 17 MB": (text(INDEX, b"{" + b" " * 17 * 2**20), "bytes; expected at most"),
    "index: 5000 files": (index({f"t{i}": f"{i}.safetensors" for i in range(5000)}), "more than 4096 files"),
    "index: a tensor that no file holds": (elsewhere, "'model.gone' is not in model.safetensors"),
    "index: a tensor it does not list": (unlisted, "but listed nowhere"),
    "index: a tensor in two files": (twice, "duplicated: "),
    "a link out of the folder": (link, "outside the folder"),
    "no tensors at all": (lambda f: (f / MODEL).unlink(), "holds neither"),
    # config.json
    "config: no JSON": (text(CONFIG, "{"), "not valid JSON"),
    "config: a list": (text(CONFIG, "[]"), "expected a JSON object"),
    "config: no text": (text(CONFIG, b"\xff\xfe{}"), "not valid JSON"),
    "config: nested deeply": (text(CONFIG, "[" * 100_000), "not valid JSON"),
    "config: nested 33 deep": (text(CONFIG, '{"a":' + "[" * 32 + "]" * 32 + "}"), "nested deeper than 32 levels"),
    "config: nested as deep as can be parsed": (
        text(CONFIG, '{"a":' + "[" * 700 + "]" * 700 + "}"),
        "nested deeper than",
    ),
    "config: a key twice": (text(CONFIG, '{"model_type": "llama4_text", "model_type": "llama4"}'), "given twice"),
    "config: 2 MB": (text(CONFIG, b"{}" + b" " * 2**21), "bytes; expected at most"),
    "config: a number of 5000 digits": (config_number("vocab_size", "9" * 5000), "not valid JSON"),
    "config: NaN": (config_number("rms_norm_eps", "NaN"), "not valid JSON"),
    "config: more than a float can hold": (config_number("hidden_size", "1e999"), "hidden_size: expected 0 to"),
    "config: another model": (config(model_type="llama"), "model_type 'llama'"),
    "config: a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers: expected 0 to 1024"),
    "config: more layers than tensors": (
        config(num_hidden_layers=1000, no_rope_layers=[], moe_layers=None, layer_types=None),
        "too few for the 1000 layers",
    ),
    "config: 10^15 words": (config(vocab_size=10**15), "vocab_size: expected 0 to"),
    "config: a negative width": (config(hidden_size=-32), "hidden_size: expected 0 to"),
    "config: no heads": (config(num_attention_heads=0), "config.json: "),
    "config: layers as text": (config(num_hidden_layers="3"), "num_hidden_layers: expected int"),
    "config: experts in a layer that is not there": (config(moe_layers=[1, 3, 99]), "moe_layers"),
    "config: no text model": (config(model_type="llama4", text_config=None), "text_config"),
    "config: an encoder's frequencies as text": (
        vision({"rope_parameters": "none"}),
        "rope_parameters: expected a map",
    ),
    "config: an encoder's frequencies as a list": (vision({"rope_parameters": [1]}), "rope_parameters: expected a map"),
    "config: an encoder's base of 400 digits": (
        vision({"rope_theta": 10**400, "rope_parameters": None}),
        "vision_config: int too large",
    ),
    "config: a malformed encoder": (
        config(model_type="llama4", text_config={}, vision_config=3),
        "vision_config: exp",
    ),
    "config: terminal control characters": (config(model_type="\x1b]0;x\x07\u202e"), "model_type '\\x1b]0;x"),
    # quantized weights
    "quantized: another method": (quantized(quant_method="fbgemm_fp8"), "quant_method: 'fbgemm_fp8'"),
    "quantized: another format": (quantized(format="pack-quantized"), "format: 'pack-quantized'"),
    "quantized: four bits": (quantized({"num_bits": 4}), "num_bits: 4 is not supported"),
    "quantized: integers": (quantized({"type": "int"}), "type: 'int'"),
    "quantized: groups": (quantized({"strategy": "group", "group_size": 128}), "strategy: 'group'"),
    "quantized: zero points": (quantized({"symmetric": False}), "symmetric: False"),
    "quantized: a scale for all inputs": (quantized(group={"input_activations": {"dynamic": False}}), "dynamic: true"),
    "quantized: outputs": (quantized(group={"output_activations": {"dynamic": True}}), "output_activations"),
    "quantized: the cache": (quantized(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    "quantized: sparse": (quantized(sparsity_config={"format": "sparse-24"}), "sparsity_config"),
    "quantized: no groups": (quantized(config_groups=None), "config_groups: expected a mapping"),
    "quantized: a list": (config(quantization_config=[]), "quantization_config: expected a mapping"),
    "quantized: a malformed group": (quantized(config_groups={"g": 1}), "config_groups.g.weights"),
    "quantized: not declared in config.json": (as_fp8(lambda t, s: None), "is F8_E4M3; expected one of"),
    "quantized: no scale": (both(as_fp8(lambda t, s: t.pop(s)), quantized()), "q_proj.weight_scale is missing"),
    "quantized: a scale of another shape": (
        both(as_fp8(lambda t, s: t.update({s: np.ones((31, 1), "f4")})), quantized()),
        "q_proj.weight_scale is [31, 1]",
    ),
    "quantized: a scale of integers": (
        both(as_fp8(lambda t, s: t.update({s: np.ones((32, 1), "i4")})), quantized()),
        "q_proj.weight_scale is I32",
    ),
    # other files
    "tokenizer: no JSON": (text("tokenizer.json", "{"), "tokenizer.json"),
    "tokenizer: not a tokenizer": (text("tokenizer.json", "{}"), "tokenizer.json"),
    "generation config: a list": (text("generation_config.json", "[]"), "expected a JSON object"),
}


# ---- the tests -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("good") / "folder"
    save_pretrained(case("three_layers").ours, path, dtype="float32")
    import_checkpoint(path, path.parent / "run")  # it is good; and one-time allocations of an import are done
    return path


def resident(line: str) -> int:
    """Memory of this process in bytes: `VmRSS` now, `VmHWM` at most since the peak was reset."""
    status = dict(entry.split(":", 1) for entry in pathlib.Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) * 1024


@pytest.mark.parametrize("name", CASES)
def test_malformed_folder_is_refused(name, good, tmp_path):
    damage, message = CASES[name]
    folder = pathlib.Path(shutil.copytree(good, tmp_path / "folder"))
    damage(folder)
    before = sorted(tmp_path.iterdir())
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    memory, started = resident("VmRSS"), time.process_time()
    with pytest.raises(InputError) as error:
        import_checkpoint(folder, tmp_path / "run")
    assert time.process_time() - started < SECONDS
    assert resident("VmHWM") - memory < BYTES
    assert message in str(error.value) and str(tmp_path) in str(error.value)
    assert len(str(error.value)) < 10_000 and "\x1b" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_number_of_cases():
    assert len(CASES) >= 60
