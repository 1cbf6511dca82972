"""Run configs: bases, overrides, every error at once with its line, checks across sections, shipped files."""

import json
import pathlib
import re

import jsonschema
import pytest

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.settings import shipped, strict_yaml, validation
from maverick_jax.settings.section import SYNONYMS, Section
from train.config import RunConfig, check_against_mesh, check_vocabulary
from train.config_files import MOVED, read_config, read_run, resolved, schema
from train.trainable.lora import LoraConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNS, MODELS = shipped.run_names(), shipped.model_names()
SMALL = """\
run: {name: small, steps: 4}
model: tiny
data:
  sources: {x: {kind: synthetic}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(text, name="run.yaml")`: a config file in the working directory, and its name as a path."""
    monkeypatch.chdir(tmp_path)

    def put(text: str, name: str = "run.yaml") -> str:
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).write_text(text)
        return name

    return put


def errors(path: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as error:
        read_config(path, overrides)
    assert error.value.exit_code == 78
    return str(error.value).splitlines()


# ---- reading, bases, overrides ---------------------------------------------------------------------------------------


def test_a_file_its_defaults_and_its_model(write):
    config = read_config(write(SMALL))
    assert config.run.steps == 4
    assert config.run.directory == pathlib.Path("runs/small")
    assert config.model.network == ModelConfig.from_name("tiny")


def test_bases_by_name_and_by_path_are_merged(write):
    write("base: pretrain_tiny\nrun: {steps: 7}\noptimizer: {b1: 0.5}\n", "below/one.yaml")
    config = read_config(write("base: below/one.yaml\nrun: {name: two}\noptimizer: {b2: 0.25}\n", "two.yaml"))
    assert (config.run.name, config.run.steps) == ("two", 7)
    assert (config.optimizer.b1, config.optimizer.b2) == (0.5, 0.25)
    assert config.optimizer.learning_rate == read_config("pretrain_tiny").optimizer.learning_rate


def test_a_base_is_relative_to_its_own_file(write):
    write(SMALL, "a/below/base.yaml")
    write("base: below/base.yaml\nrun: {steps: 9}\n", "a/run.yaml")
    assert read_config("a/run.yaml").run.steps == 9


def test_a_cycle_of_bases_is_refused(write):
    write("base: b.yaml\n", "a.yaml")
    write("base: a.yaml\n", "b.yaml")
    (line,) = errors("a.yaml")
    assert "cycle: a.yaml -> b.yaml -> a.yaml" in line
    (line,) = errors(write(SMALL.replace("model: tiny", "model: {base: m.yaml}"), "c.yaml"))
    assert line.startswith("c.yaml:2: model.base: m.yaml: no such file")
    write("base: m.yaml\n", "m.yaml")
    assert "a cycle" in errors("c.yaml")[0]


def test_a_model_is_a_name_a_mapping_or_a_mapping_on_a_name(write):
    wide = read_config(write(SMALL.replace("tiny", "{base: tiny, hidden_size: 256}")))
    assert wide.model.network == ModelConfig.from_name("tiny").model_copy(update={"hidden_size": 256})
    write("base: run.yaml\nmodel: {head_dim: 64}\n", "over.yaml")
    assert (read_config("over.yaml").model.hidden_size, read_config("over.yaml").model.head_dim) == (256, 64)
    write("base: run.yaml\nmodel: scout_17b_16e\n", "other.yaml")
    assert read_config("other.yaml").model.network == ModelConfig.from_name("scout_17b_16e")
    fields = json.dumps(ModelConfig.from_name("tiny").model_dump())
    assert read_config(write(SMALL.replace("tiny", fields))).model.network == ModelConfig.from_name("tiny")


def test_a_model_with_its_own_base_ignores_the_model_below(write):
    write(SMALL.replace("tiny", "scout_17b_16e"), "below.yaml")
    config = read_config(write("base: below.yaml\nmodel: {base: maverick_17b_128e, num_hidden_layers: 4}\n"))
    assert config.model.rope_scaling is None
    assert not config.model.use_qk_norm


def test_overrides(write):
    config = read_config(
        write(SMALL),
        [
            "optimizer.learning_rate=3e-4",
            "run.name=on",
            "run.dir=gs://bucket/run",
            "model.hidden_size=64",
            "model.balance.kind=none",
            "data.sources={y: {kind: synthetic, weight: 2}}",
            "mesh.rules.vocab=[]",
            "run.steps=5",
            "run.steps=6",
        ],
    )
    assert config.optimizer.learning_rate == 3e-4
    assert (config.run.name, config.run.dir, config.run.steps) == ("on", "gs://bucket/run", 6)
    assert (config.model.hidden_size, config.model.vocab_size, config.model.balance.kind) == (64, 512, "none")
    assert list(config.data.sources) == ["y"]  # a mapping given whole replaces
    assert config.mesh.rules == {"vocab": []}


def test_overriding_the_model(write):
    path = write(SMALL.replace("tiny", "{base: tiny, hidden_size: 256}"))
    assert read_config(path, ["model=scout_17b_16e"]).model.network == ModelConfig.from_name("scout_17b_16e")
    assert read_config(path, ["model.base=tiny"]).model.network == ModelConfig.from_name("tiny")
    deep = read_config(path, ["model=tiny", "model.num_hidden_layers=8"]).model
    assert (deep.num_hidden_layers, deep.hidden_size) == (8, 128)


def test_null_removes_a_mapping_and_indices_change_items(write):
    write(SMALL.replace("kind: synthetic", "path: [a, b]"), "below.yaml")
    path = write("base: below.yaml\ndata: {sources: {x: null, y: {kind: synthetic}}}\n")
    assert list(read_config(path).data.sources) == ["y"]
    assert read_config("below.yaml", ["data.sources.x.path.1=c"]).data.sources["x"].path == ["a", "c"]


def test_null_removes_a_mapping_of_the_base_on_the_command_line_as_in_a_file(write):
    path, other = write(SMALL, "below.yaml"), "{x: null, y: {kind: synthetic}}"
    for overrides in (
        [f"data.sources={other}"],
        [f"data={{sources: {other}}}"],
        ["data.sources.x=null", "data.sources.y={kind: synthetic}"],
        ["data.sources={y: {kind: synthetic}}", "data.sources.x=null"],
    ):
        assert list(read_config(path, overrides).data.sources) == ["y"]
    both = write(f"base: below.yaml\ndata: {{sources: {other}}}\n")
    assert list(read_config(both).data.sources) == ["y"]
    assert list(read_config(both, ["data.sources={y: null, z: {kind: synthetic}}"]).data.sources) == ["z"]


def test_null_for_what_the_base_does_not_have_is_refused(write):
    path = write(SMALL, "below.yaml")
    said = "data.sources.w: must be a mapping, got null, which removes a mapping of the base; the base has none of this"
    (line,) = errors(write("base: below.yaml\ndata: {sources: {w: null}}\n"))
    assert line.startswith(f"run.yaml:2: {said}")
    (line,) = errors(path, "data.sources={w: null, y: {kind: synthetic}}")
    assert line.startswith(f"command line: {said}")


def test_a_list_without_items_and_one_with_a_wrong_item_are_one_error_each(write):
    path = write(SMALL)
    (empty,) = errors(path, "trainable.lora={targets: []}")
    assert empty == "command line: trainable.lora.targets: must have at least 1 item, got []"
    (none_left,) = errors(path, "data.sources={x: null}")
    assert none_left == (
        "command line: data.sources: none, and objective.kind: pretrain learns from data; expected one or more"
    )
    (wrong,) = errors(path, "trainable.lora={targets: [q_projj]}")
    assert wrong.startswith("command line: trainable.lora.targets.0: 'q_projj' is not one of")


def test_a_resolved_config_can_be_read_back(write):
    for name in RUNS:
        config = read_run(name)
        again = read_run(write(strict_yaml.dump(resolved(config))))
        assert resolved(again) == resolved(config)
        assert again == config or config.stages


# ---- keys that moved -------------------------------------------------------------------------------------------------


def test_moved_keys_are_the_first_error(write):
    path = write(SMALL + "optimizer:\n  b1: oops\n  train: [norms]\n  lora: {rank: 0}\n  experts: nowhere.yaml\n")
    assert errors(path, "optimizer.lora.rank=2", "run.steps=x", "optimizer.experts=null") == [
        "command line: optimizer.experts: moved to trainable.experts",
        "command line: optimizer.lora.rank: moved to trainable.lora.rank",
        "run.yaml:7: optimizer.train: moved to trainable.parameters",
        "run.yaml:8: optimizer.lora: moved to trainable.lora",
    ]
    write("base: run.yaml\n", "over.yaml")
    assert "run.yaml:7: optimizer.train: moved to trainable.parameters" in errors("over.yaml")


def test_every_moved_key_leads_to_an_existing_key():
    known = set(validation.keys(RunConfig))
    assert {old for old in MOVED if old in known} == set()
    assert set(MOVED.values()) <= known


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_every_error_in_one_pass_with_its_line(write):
    path = write(
        """\
run: {name: a b, stps: 4}
model: tyni
mesh: {fsdp: two}
data:
  sources: {x: {kind: synthetic}}
  sources: {x: {kind: synthetc}, z: {kind: synthetic}}
  batch_size: 0
  sequence_length: 128
optimizer:
  schedule: cosin
  learning_rate: 1e-3x
  warmup_stepss: 3
  b1: 01
checkpoint: 5
steps: 3
"""
    )
    found = errors(path, "optimizer.b2=2", "data.sources.z.wieght=1", "loging.x=1", "nonsense")
    expected = [
        "run.yaml:1: run.name: ",
        "run.yaml:1: run.stps: unknown key; did you mean run.steps?",
        "run.yaml:2: model.base: no shipped model is named 'tyni'; did you mean tiny?",
        "run.yaml:3: mesh.fsdp: must be a valid integer, got 'two'",
        "run.yaml:6: data.sources: given twice (first in run.yaml:5)",
        "run.yaml:6: data.sources.x.kind: 'synthetc' is not one of files, text, jsonl, parquet, array_record, "
        "trajectories, pictures, drawn_pictures, preferences, synthetic, chain, retrieval; did you mean synthetic?",
        "run.yaml:7: data.batch_size: must be greater than or equal to 1, got 0",
        "run.yaml:10: optimizer.schedule: 'cosin' is not one of cosine, wsd, constant; did you mean cosine?",
        "run.yaml:11: optimizer.learning_rate: must be a valid number, got '1e-3x'",
        "run.yaml:12: optimizer.warmup_stepss: unknown key; did you mean optimizer.warmup_steps?",
        "run.yaml:13: optimizer.b1: 01: a leading zero",
        "run.yaml:14: checkpoint: must be a mapping, got 5",
        "run.yaml:15: steps: unknown key; did you mean run.steps?",
        "command line: optimizer.b2: must be less than 1, got 2",
        "command line: data.sources.z.wieght: unknown key; did you mean data.sources.z.weight?",
        "command line: loging: unknown key; did you mean logging?",
        "command line: nonsense: expected key=value",
    ]
    for start in expected:
        assert any(line.startswith(start) for line in found), (start, found)
    assert not any("run.steps: required" in line for line in found)  # its misspelling was reported


def test_errors_in_a_base_name_its_file(write):
    write(SMALL + "optimizer: {b11: 0.5}\n", "below.yaml")
    assert errors(write("base: below.yaml\n")) == [
        "below.yaml:5: optimizer.b11: unknown key; did you mean optimizer.b1?"
    ]
    assert errors(write("base: belw.yaml\n"))[0].startswith(
        "run.yaml:1: base: belw.yaml: no such file; did you mean below"
    )
    assert "did you mean pretrain_tiny?" in errors(write("base: pretrain_tny\n"))[0]


@pytest.mark.parametrize("name", ["pretrian_tiny", "nowhere/run.yaml", "run.yml"])
def test_a_missing_config_is_refused(write, name):
    write(SMALL)
    (line,) = errors(name)
    assert "did you mean" in line or name.startswith("nowhere")


@pytest.mark.parametrize("key", ["num_hidden_layers", "interleave_moe_layer_step", "no_rope_layer_interval"])
def test_large_numbers_need_no_memory(write, key):
    write(SMALL)
    override = f"model.{key}={10**12 + 1}"
    if key == "num_hidden_layers":
        assert errors(write(SMALL), override) == [f"command line: model.{key}: at most 4096 layers, got {10**12 + 1}"]
    else:
        config = read_config(write(SMALL), [override, "model.num_local_experts=2"]).model
        assert len(config.period) <= config.num_hidden_layers + 1


@pytest.mark.parametrize("text", ["- a\n", "text\n", "", "run:\n", "run: 3\nmodel: []\ndata: x\nmesh: null\n"])
def test_files_of_the_wrong_shape(write, text):
    assert errors(write(text))


def typos(key: str) -> list[str]:
    """One letter dropped, doubled, or swapped with the next: one of each, from the middle of the word."""
    i = len(key) // 2
    found = [key[:i] + key[i + 1 :], key[:i] + key[i] + key[i:], key[: i - 1] + key[i] + key[i - 1] + key[i + 1 :]]
    return [typo for typo in found if typo != key]


def shipped_keys() -> list[tuple[str, int, str]]:
    """(run file's name, line from 1, key) for every key of every shipped run."""
    found = []
    for name in RUNS:
        for number, line in enumerate(shipped.run_path(name).read_text().splitlines(), 1):
            if match := re.match(r" *([a-z_0-9]+):", line):
                found.append((name, number, match[1]))
    return found


def model_keys() -> list[tuple[str, int, str]]:
    return [
        (name, number, match[1])
        for name in MODELS
        for number, line in enumerate(shipped.model_path(name).read_text().splitlines(), 1)
        if (match := re.match(r"([a-z_0-9]+):", line))
    ]


SOURCE_NAMES = {
    "text",
    "calculator",
    "tinyshakespeare",
    "toy_shop",
    "toy_shop_pairs",
    "web",
    "code",
    "counting",
    "chats",
    "long",
    "pictures",
    "charts",
    "tables",
    "agents",
    "chosen",
    "first",
    "medical",
    "medical_chats",
    "records",
    "records_1k",
    "repositories",
}  # chosen by the user: none is wrong


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in RUNS if re.search(r"_(h200|v\d\w?)|variants", name)]
OTHERS = [name for name in RUNS if name not in {large.values[0] for large in LARGE}]


@pytest.mark.parametrize("name", [*OTHERS, *LARGE])
def test_every_key_of_a_shipped_run_mistyped_gets_the_right_suggestion(name, write):
    lines = shipped.run_path(name).read_text().splitlines()
    tried = 0
    for _, number, key in (k for k in shipped_keys() if k[0] == name and k[2] not in SOURCE_NAMES):
        for typo in typos(key):
            changed = list(lines)
            changed[number - 1] = re.sub(rf"^( *){key}:", rf"\1{typo}:", lines[number - 1])
            found = errors(write("\n".join(changed) + "\n"))
            said = rf"(unknown key|no such logical axis); did you mean ([\w.]+\.)?{key}\?"
            pattern = rf"^run\.yaml:{number}: ([\w.]+\.)?{typo}: {said}$"
            assert any(re.match(pattern, line) for line in found), (typo, found)
            tried += 1
    assert tried >= 8


@pytest.mark.parametrize("name", MODELS)
def test_every_key_of_a_shipped_model_mistyped_gets_the_right_suggestion(name, write):
    lines = shipped.model_path(name).read_text().splitlines()
    for _, number, key in (k for k in model_keys() if k[0] == name):
        for typo in typos(key):
            changed = list(lines)
            changed[number - 1] = lines[number - 1].replace(f"{key}:", f"{typo}:", 1)
            write("\n".join(changed) + "\n", "model.yaml")
            found = errors(write(SMALL.replace("tiny", "{base: ./model.yaml}")))
            said = f"model.yaml:{number}: model.{typo}: unknown key; did you mean model.{key}?"
            assert any(line.endswith(said) for line in found), (said, found)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(
    "key",
    [
        *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.eps", "optimizer.clip_norm"),
        *("model.rms_norm_eps", "model.balance.weight", "data.sources.x.weight", "logging.watchdog_seconds"),
    ],
)
def test_a_number_that_is_not_finite_is_refused(write, key, value):
    (said,) = errors(write(SMALL), f"{key}={value}")
    assert said.startswith(f"command line: {key}: must be a")


def test_no_section_takes_infinities_or_nan():
    """So no number of any section can be one, also those of sections to come."""
    found = [Section]
    for section in found:
        found += section.__subclasses__()
    allowed = [section.__name__ for section in found if section.model_config.get("allow_inf_nan") is not False]
    assert len(found) > 40 and allowed == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.lr=3", "optimizer.lr: unknown key; did you mean optimizer.learning_rate?"),
        ("optimizer.max_grad_norm=1", "did you mean optimizer.clip_norm?"),
        ("optimizer.beta2=0.9", "did you mean optimizer.b2?"),
        ("data.seq_len=64", "did you mean data.sequence_length?"),
        ("run.max_steps=64", "did you mean run.steps?"),
        ("lr=3", "lr: unknown key; did you mean optimizer.learning_rate?"),
        ("run.save_steps=3", "did you mean checkpoint.every?"),
        ("logging.logging_steps=3", "did you mean logging.every?"),
    ],
)
def test_names_of_other_programs_are_answered_with_ours(write, word, said):
    (found,) = errors(write(SMALL), word)
    assert said in found


def test_each_synonym_is_the_name_of_a_key():
    known = [key for section in (RunConfig, LoraConfig) for key in validation.keys(section)]
    options = {"max_tokens", "temperature"}
    assert {ours for ours in SYNONYMS.values() if ours not in options} <= {
        name for key in known for name in (key, key.rpartition(".")[2])
    }


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("mesh.expert=0", "command line: mesh.expert: 0 devices"),
        (
            "mesh.microbatches=2",
            "command line: mesh.microbatches: 2 needs stages to pass through; set pipeline above 1",
        ),
        ("mesh.expert=3", "command line: data.batch_size: 8 is not a multiple of 3, over which mesh.expert=3"),
        ("optimizer.accumulation_steps=3", "command line: data.batch_size: 8 is not a multiple of"),
        ("logging.profile_start=1", "command line: logging.profile_start: step 1 compiles"),
    ],
)
def test_the_place_of_an_error_is_the_value_that_caused_it(write, word, said):
    """The other key is in a shipped file."""
    (found, *_) = errors(write("base: pretrain_tiny\nmesh: {pipeline: 1}\nlogging: {every: 1}\n"), word)
    assert found.startswith(said)


def test_the_place_of_an_error_in_a_file_is_its_line(write):
    (found,) = errors(write("base: pretrain_tiny\nmesh:\n  expert: 0\n"), "run.steps=3")
    assert found.startswith("run.yaml:3: mesh.expert: 0 devices")


# ---- checks across sections ------------------------------------------------------------------------------------------


SHARED_ROWS = ["model.attention_chunk_size=8", "data.sequence_length=64"]


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (
            ["data.batch_size=9", "optimizer.accumulation_steps=2"],
            "data.batch_size",
            "optimizer.accumulation_steps (2)",
        ),
        (["data.batch_size=6", "mesh.fsdp=4"], "data.batch_size", "multiple of 4, over which mesh.fsdp=4"),
        (
            ["data.batch_size=8", "optimizer.accumulation_steps=4", "mesh.data=2", "mesh.fsdp=2"],
            "data.batch_size",
            "8 / 4 (optimizer.accumulation_steps) is not a multiple of 4",
        ),
        (["mesh.expert=3", "data.batch_size=6"], "model.num_local_experts", "8 is not a multiple of 3"),
        (["mesh.tensor=4"], "model.num_key_value_heads", "2 is not a multiple of 4"),
        (["mesh.tensor=8"], "model.num_attention_heads", "4 is not a multiple of 8"),
        (["mesh.tensor=2", "data.sequence_length=63"], "data.sequence_length", "63 is not a multiple of 2"),
        (["mesh.tensor=2", "model.vocab_size=511"], "model.vocab_size", "511 is not a multiple of 2"),
        (["mesh.tensor=2", "model.intermediate_size_mlp=511"], "model.intermediate_size_mlp", "(mlp)"),
        (["mesh.tensor=2", "model.intermediate_size=255"], "model.intermediate_size", "(expert_mlp)"),
        (["mesh.fsdp=3", "data.batch_size=6"], "model.hidden_size", "(expert_embed)"),
        (["mesh.fsdp=3", "data.batch_size=6", "mesh.rules.embed=null"], "model.hidden_size", "(table)"),
        (["mesh.context=3"], "data.sequence_length", "multiple of 3, over which mesh.context=3"),
        (
            ["mesh.context=4", "model.attention_chunk_size=8", "data.sequence_length=96"],
            "data.sequence_length",
            "96 is not a multiple of 64, twice mesh.context=4 times model.attention_chunk_size (8); expected 128, or "
            "mesh.context=3",
        ),
        (
            ["mesh.context=2", "model.attention_chunk_size=8", "data.sequence_length=64"],
            "data.cell",
            "null lets attention chunks of a document lie on two of mesh.context=2 devices; expected a multiple of "
            "model.attention_chunk_size (8) that divides 16, such as 16",
        ),
        (["mesh.context=2", *SHARED_ROWS, "data.cell=32"], "data.cell", "(8) that divides 16"),
        (["mesh.context=2", *SHARED_ROWS, "data.cell=4"], "data.cell", "4 lets attention chunks"),
        (
            ["mesh.pipeline=2"],
            "model.num_hidden_layers",
            "4 layers are 1 whole periods of 4, not a multiple of 2, over which mesh.pipeline=2 splits them",
        ),
        (
            ["mesh.pipeline=2", "mesh.microbatches=3", "model.num_hidden_layers=8"],
            "mesh.microbatches",
            "3 does not divide the 8 rows of a device",
        ),
        (
            [
                "mesh.pipeline=2",
                "model.num_hidden_layers=8",
                "trainable.parameters=[experts]",
                "trainable.experts={1: [0]}",
            ],
            "trainable.experts",
            "expected null, or mesh.pipeline=1",
        ),
    ],
)
def test_sizes_that_the_mesh_cannot_divide_are_refused_when_read(write, overrides, key, said):
    found = errors(write(SMALL), *overrides)
    assert any(f": {key}: " in line and said in line for line in found), found


def test_devices_can_share_rows_of_whole_chunks(write):
    for more in (["data.cell=8"], ["data.cell=16"], ["model.attention_chunk_size=null"]):
        config = read_config(write(SMALL), [*SHARED_ROWS, *more])
        check_against_mesh(config, {"context": 2})


def test_cells_divide_rows(write):
    (found,) = errors(write(SMALL), "data.sequence_length=64", "data.cell=24")
    assert "cell: 24 does not divide sequence_length (64); 16 does" in found


def test_the_same_check_with_a_known_number_of_devices(write):
    config = read_config(write(SMALL), ["data.batch_size=6"])  # mesh.data is -1
    check_against_mesh(config, config.mesh.resolve(3))
    with pytest.raises(InputError, match=r"mesh of data=4: data\.batch_size: 6 is not a multiple of 4"):
        check_against_mesh(config, config.mesh.resolve(4))


def test_the_tokenizer_must_fit_the_embedding(write):
    config = read_config(write(SMALL))
    check_vocabulary(config, 512)
    with pytest.raises(InputError, match=r"data\.tokenizer: bytes has 513 tokens.*model\.vocab_size \(512\)"):
        check_vocabulary(config, 513)


@pytest.mark.parametrize("place", ["run/checkpoints", "run", ".", "run/../run/copies"])
def test_copies_of_checkpoints_do_not_lie_among_the_runs_files(tmp_path, place):
    words = [f"run.dir={tmp_path / 'run'}", f"checkpoint.copies={{to: {tmp_path / place}}}"]
    with pytest.raises(InputError, match=r"checkpoint\.copies\.to: .* lie in each other; expected another place"):
        read_config("pretrain_tiny", words)


def test_copies_of_checkpoints_may_lie_beside_the_run(tmp_path):
    words = [f"run.dir={tmp_path / 'run'}", f"checkpoint.copies={{to: {tmp_path / 'run-copies'}}}"]
    copies = read_config("pretrain_tiny", words).checkpoint.copies
    assert copies is not None and copies.to == str(tmp_path / "run-copies")


# ---- shipped files and schema ----------------------------------------------------------------------------------------


def test_counts_of_the_shipped_models():
    counts = {
        n: (ModelConfig.from_name(n).num_parameters(), ModelConfig.from_name(n).num_active_parameters()) for n in MODELS
    }
    assert counts["maverick_17b_128e"] == (400_711_848_960, 17_184_691_200)
    assert counts["scout_17b_16e"] == (107_769_861_120, 17_172_894_720)
    assert counts["maverick_8x22b"] == (141_479_417_856, 38_821_730_304)
    assert counts["maverick_405b"] == (405_039_191_040, 21_512_033_280)
    assert counts["dense_8b"] == (8_634_765_312, 8_634_765_312)
    assert counts["dense_70b"] == (71_762_714_624, 71_762_714_624)
    total, active = counts["behemoth_288b_16e"]
    assert abs(active / 288e9 - 1) < 0.005
    assert 1.9e12 < total < 2e12
    assert counts["maverick_slice_h200"][0] == 5_291_996_160
    assert 2e6 < counts["tiny"][0] < 3e6


def test_an_unknown_model_gets_the_nearest_name():
    with pytest.raises(InputError, match="did you mean maverick_17b_128e"):
        ModelConfig.from_name("maverick-17b-128e")


@pytest.mark.parametrize("name", RUNS)
def test_shipped_runs_are_named_after_their_file_and_described(name):
    assert read_run(name).run.name == name
    first, second = shipped.run_path(name).read_text().splitlines()[:2]
    assert first == "# yaml-language-server: $schema=schema.json"
    assert second.startswith("# ")


def test_the_schema_accepts_every_shipped_file_and_refuses_typos():
    validator = jsonschema.Draft202012Validator(schema())
    model = jsonschema.Draft202012Validator({"$ref": "#/$defs/ModelConfig", "$defs": schema()["$defs"]})
    for name in RUNS:
        data = strict_yaml.read(shipped.run_path(name)).data
        validator.validate(data)
        assert list(validator.iter_errors({**data, "optimzer": {}}))
    for name in MODELS:
        data = strict_yaml.read(shipped.model_path(name)).data
        model.validate(data)
        assert list(model.iter_errors({**data, "hiden_size": 1}))
    assert schema()["$defs"]["AdamW"]["properties"]["learning_rate"]["description"]


def test_the_shipped_schema_is_current():
    """`make schema` writes it."""
    assert json.loads((ROOT / "configs" / "schema.json").read_text()) == schema()


def test_every_field_of_a_config_is_documented():
    """Descriptions come from the docstrings under the fields; fields without one must be public names of the model."""
    sections = [
        d
        for name, d in schema()["$defs"].items()
        if name not in ("ModelConfig", "ModelSection", "RopeScaling", "Pretrain")
    ]
    bare = [
        key
        for section in sections
        for key, field in section.get("properties", {}).items()
        if "description" not in field and key not in ("b1", "b2", "eps", "kind")
    ]
    assert bare == []


def test_sections_are_the_contract():
    expected = [
        "plugins",
        "run",
        "model",
        "mesh",
        "data",
        "objective",
        "trainable",
        "optimizer",
        "guard",
        "checkpoint",
        "logging",
        "stages",
    ]
    assert list(RunConfig.model_fields) == expected
