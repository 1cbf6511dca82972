"""A run as users see it: its files, repeating its command, resuming, and refusals."""

import json
import math
import signal

import pytest

from launch.cli import main
from maverick_jax.errors import harmless
from tests.helpers.small_run import (
    STEPS,
    assert_same_run,
    checksums,
    contents,
    cut_back,
    finish,
    lines,
    log_of,
    losses,
    store,
    wait_for,
)
from train.config_files import read_config
from train.flops import flops_of_run

TRAINING_FIELDS = {
    *("step", "loss", "tokens", "tokens_per_second", "step_seconds", "learning_rate", "grad_norm", "mfu"),
    *(
        "router_load",
        "router_load_max",
        "router_entropy",
        "router_idle",
        "router_balance",
        "skipped",
        "goodput",
        "energy_kwh",
    ),
}
EIGHT_DEVICES = ["optimizer.accumulation_steps=1"]  # one sequence per device of this process
EVALUATION_FIELDS = {"step", "eval_loss", "eval_tokens", "eval_seconds"}


@pytest.fixture
def maverick(runs, capsys, monkeypatch):
    """`maverick("eval", ...)` in this process -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("MAVERICK_CACHE", str(runs.root / "cache"))

    def call(*words) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


# ---- files of a run --------------------------------------------------------------------------------------------------


def test_metrics_have_the_promised_fields_and_no_other(whole_run):
    records = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    training = [record for record in records if "loss" in record]
    evaluation = [record for record in records if "eval_loss" in record]
    assert len(training) + len(evaluation) == len(records)
    assert [record["step"] for record in training] == list(range(1, STEPS + 1))
    assert [record["step"] for record in evaluation] == [6, 12, 18, 24]
    assert all(set(record) == TRAINING_FIELDS for record in training)
    assert all(set(record) == EVALUATION_FIELDS for record in evaluation)
    for record in training:
        assert record["mfu"] is None  # a CPU's peak is unknown
        assert record["tokens_per_second"] == pytest.approx(8 * 32 / record["step_seconds"])
        assert len(record["router_load_max"]) == 2  # layers with experts
        for loads, most in zip(record["router_load"], record["router_load_max"], strict=True):
            assert sum(loads) == pytest.approx(100 * 4, abs=2) and max(loads) == pytest.approx(100 * most, abs=0.6)
        assert record["skipped"] == 0
    tokens = [record["tokens"] for record in training]
    assert all(0 < more - before <= 8 * 32 for before, more in zip([0, *tokens], tokens, strict=False))
    assert training[-1]["loss"] < training[0]["loss"] - 0.5
    assert evaluation[-1]["eval_loss"] < evaluation[0]["eval_loss"]


def test_the_run_directory_describes_the_run(whole_run, runs):
    written = read_config(str(whole_run / "config.yaml"))
    assert written == read_config(runs.config, [f"run.dir={whole_run}"])
    environment = json.loads((whole_run / "environment.json").read_text())
    assert environment["device_count"] == environment["process_count"] == 1
    assert set(environment["mesh"].values()) == {1}
    assert environment["packages"]["jax"] and environment["parameters"] == written.model.num_parameters()
    assert environment["train_flops_per_token"] == sum(flops_of_run(written, {}).values())
    (start,) = environment["starts"]
    assert (start["step"], set(start)) == (0, {*["step", "time", "host", "command", "version", "commit", "changed"]})
    assert store(whole_run).steps() == list(range(3, STEPS + 1, 3))
    assert [p.name for p in whole_run.rglob("*tmp*")] == []


def test_the_same_command_again_says_it_is_complete(whole_run, runs):
    """The command gets the config.yaml that the run wrote."""
    before = contents(whole_run)
    said = runs.train(whole_run, config=whole_run / "config.yaml", log="again")
    assert f"is complete: {STEPS} of {STEPS} steps" in said
    assert contents(whole_run) == before


# ---- resume ----------------------------------------------------------------------------------------------------------


def test_resume_is_bitwise(whole_run, runs, tmp_path):
    """With two microbatches per update. After the restart, worker processes assemble the batches, which must not change
    them."""
    run_dir = cut_back(whole_run, tmp_path / "run", 12)
    said = runs.train(run_dir, "data.workers=2")
    assert f"restored checkpoint {run_dir}/checkpoints/12" in said
    assert "dropped 14 line(s) after step 12" in said
    assert_same_run(whole_run, run_dir)


@pytest.mark.slow
def test_more_steps_continue_the_run(whole_run, runs, tmp_path):
    """With a schedule that does not depend on the number of steps, a longer run continues the shorter one."""
    runs.train(tmp_path / "run", "run.steps=5", "checkpoint.every=4")
    assert lines(tmp_path / "run")[-1]["step"] == 5 and store(tmp_path / "run").steps() == [4, 5]
    runs.train(tmp_path / "run")
    training = lambda run_dir: [line for line in lines(run_dir) if "loss" in line]  # the last step has an evaluation
    assert training(tmp_path / "run") == training(whole_run)
    assert checksums(tmp_path / "run", STEPS) == checksums(whole_run, STEPS)


@pytest.mark.slow
def test_accumulation_equals_the_whole_batch(whole_run, runs, tmp_path):
    runs.train(tmp_path / "run", "optimizer.accumulation_steps=1")
    assert losses(tmp_path / "run") == pytest.approx(losses(whole_run), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", ["optimizer.accumulation_steps=1", "optimizer.schedule=cosine", "data.packing=best_fit"]
)
def test_resume_is_bitwise_with(option, runs, tmp_path):
    runs.train(tmp_path / "whole", option)
    run_dir = cut_back(tmp_path / "whole", tmp_path / "run", 12)
    runs.train(run_dir, option, "data.workers=2")
    assert_same_run(tmp_path / "whole", run_dir)


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_saves_and_exits_75_and_the_same_command_finishes(whole_run, runs, tmp_path):
    run_dir = tmp_path / "run"
    process = runs.start(run_dir, "checkpoint.every=1000")
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and len(lines(run_dir)) > 2, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process) == 75, log_of(run_dir)
    (saved,) = store(run_dir).steps()
    assert f"stopped as asked after step {saved}, which is saved" in log_of(run_dir)
    runs.train(run_dir, "checkpoint.every=1000")
    assert_same_run(whole_run, run_dir)


def test_updates_that_are_not_finite_are_skipped_until_the_budget_is_spent(runs, tmp_path):
    """The first update, at an absurd learning rate, makes every later loss a NaN."""
    absurd = ("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "run.skip_budget=3", "checkpoint.every=1")
    said = runs.train(tmp_path / "run", *absurd, "run.eval_every=0", code=79)
    assert "Traceback" not in said
    assert "step 5: 4 updates were refused" in said and "optimizer.learning_rate" in said
    records = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert [record["skipped"] for record in records] == [0, 1, 2, 3, 4]
    refused = [(line["step"], line["rows"]) for line in lines(tmp_path / "run") if line.get("refused") == "non_finite"]
    assert refused == [(step, [8 * step - 8, 8 * step - 1]) for step in (2, 3, 4, 5)]
    assert all(not math.isfinite(float(record["loss"])) or record["skipped"] == 0 for record in records)
    model = lambda step: {k: v for k, v in checksums(tmp_path / "run", step).items() if k.startswith(("model", "opt"))}
    saved = store(tmp_path / "run").steps()
    assert saved[0] == 1 and len(saved) >= 3
    assert all(model(step) == model(1) for step in saved[1:])


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_compiles(monkeypatch):
    """Fails the test if anything is compiled."""
    import jax._src.compiler

    def refuse(*args, **kwargs):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(jax._src.compiler, "compile_or_get_cached", refuse)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.hidden_size=64"], "model.hidden_size: 32 there, 64 here"),
        (["data.sequence_length=64"], "data.sequence_length: 32 there, 64 here"),
        (["run.seed=1"], "run.seed: 0 there, 1 here"),
        (
            ["model.num_local_experts=8", "data.batch_size=16"],
            "model.num_local_experts: 4 there, 8 here\n  data.batch_size: 8 there, 16 here",
        ),
        (["model.vocab_size=128"], "data.tokenizer: bytes has 271 tokens, more than model.vocab_size (128)"),
        (["data.batch_size=12"], "data.batch_size: 12 is not a multiple of 8"),
        (["mesh.tensor=8"], "model.num_attention_heads: 4 is not a multiple of 8"),
        (["mesh.data=4"], "mesh: data=4 needs 4 devices; this job has 8"),
        (["mesh.expert=3"], "model.num_local_experts: 4 is not a multiple of 3"),
        (["data.held_out_fraction=0.00001"], "sequences are held out, less than one batch of 8"),
        (["optimizer.accumulation_steps=3"], "data.batch_size: 8 is not a multiple of optimizer.accumulation_steps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("nothing_compiles")
def test_refusals_come_before_anything_is_compiled_or_changed(overrides, said, maverick, whole_run, runs):
    before = contents(whole_run)
    code, out, err = maverick("train", runs.config, f"run.dir={whole_run}", *EIGHT_DEVICES, *overrides)
    assert (code, out) == (78, ""), err
    assert said in err and len(err.splitlines()) <= 8
    assert contents(whole_run) == before


def test_the_guard_sees_compilation(maverick, runs, tmp_path, nothing_compiles):
    with pytest.raises(AssertionError, match="something was compiled"):
        maverick("train", runs.config, f"run.dir={tmp_path}/run", *EIGHT_DEVICES)


# ---- use of a run ----------------------------------------------------------------------------------------------------


def test_eval_without_a_config_takes_that_of_the_run(maverick, whole_run, runs):
    expected = maverick("eval", whole_run, runs.config, "run.eval_batches=1", "--json")
    assert expected[0] == 0, expected[2]
    newest = max((whole_run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    for checkpoint in (whole_run, newest):
        code, out, err = maverick("eval", checkpoint, "run.eval_batches=1", "--json")
        assert code == 0, err
        assert json.loads(out) == json.loads(expected[1]) | {"checkpoint": str(checkpoint)}


@pytest.mark.slow
def test_generate_draws_samples_of_every_prompt_of_a_file(maverick, whole_run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ROMEO:"}\n\n{"prompt": "A\\nB"}\n')
    (tmp_path / "prompts.txt").write_text("ROMEO:\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n{"text": "y"}\n')
    options = ["--samples", 5, "--max-tokens", 6, "--seed", 1]
    code, out, err = maverick("generate", whole_run, "--prompts", tmp_path / "prompts.jsonl", *options, "--json")
    assert code == 0, err
    found = json.loads(out)["samples"]
    assert [(s["prompt"], s["sample"]) for s in found] == [(p, i) for p in ("ROMEO:", "A\nB") for i in range(5)]
    assert len({s["text"] for s in found[:5]}) > 1, "samples of one prompt differ"
    code, out, _ = maverick("generate", whole_run, "--prompts", tmp_path / "prompts.txt", *options[:2], "--top-k", 1)
    assert code == 0 and "--- prompt 1, sample 5\nROMEO:" in out
    assert len(set(out.split("--- prompt 1, sample ")[1:])) == 5
    assert len({text[1:] for text in out.split("--- prompt 1, sample ")[1:]}) <= 2, "top-k 1 is greedy"
    code, _, err = maverick("generate", whole_run, "--prompts", tmp_path / "bad.jsonl")
    assert code == 78 and "bad.jsonl:2: expected an object with a text `prompt`" in err


def test_eval_answers_tasks(maverick, whole_run, runs, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"prompt": "{i} + 1 =", "answer": {i + 1}}}\n' for i in range(3)))
    (tmp_path / "tasks.yaml").write_text(f"tasks: {{sums: {{kind: questions, path: {questions}, max_tokens: 4}}}}\n")
    given = ["--tasks", tmp_path / "tasks.yaml", "--tasks", questions]
    code, out, err = maverick("eval", whole_run, runs.config, *given, "--json")
    assert code == 0, err
    found = json.loads(out)["tasks"]
    assert list(found) == ["sums", "questions"] and all(0 <= task["score"]["value"] <= 1 for task in found.values())
    assert [task["n"] for task in found.values()] == [3, 3] and len(found["sums"]["examples"]) == 3
    code, out, _ = maverick("eval", whole_run, runs.config, *given[:2])
    assert code == 0 and "sums" in out and "95% interval" in out


def test_eval_generate_and_export_accept_the_run(maverick, whole_run, runs, tmp_path):
    code, out, err = maverick("eval", whole_run, runs.config, "--json")
    assert code == 0, err
    final = lines(whole_run)[-1]
    assert json.loads(out)["eval_tokens"] == final["eval_tokens"]
    assert json.loads(out)["eval_loss"] == pytest.approx(final["eval_loss"], abs=1e-5)

    code, said, err = maverick("generate", whole_run, "--prompt", "ROMEO:", "--max-tokens", 8, "--json")
    assert code == 0, err
    assert json.loads(said)["prompt"] == "ROMEO:" and json.loads(said)["text"]
    assert maverick("generate", whole_run, "--prompt", "ROMEO:", "--max-tokens", 8, "--json")[1] == said

    assert maverick("generate", whole_run, "--prompt", "ROMEO:", "--max-tokens", 8)[1] == (
        "ROMEO:" + harmless(json.loads(said)["text"]) + "\n"
    )

    code, _, err = maverick("export", whole_run, tmp_path / "exported", "--dtype", "float32")
    assert code == 0, err
    assert {"config.json", "tokenizer.json"} < {path.name for path in (tmp_path / "exported").iterdir()}
    code, again, err = maverick("eval", tmp_path / "exported", runs.config, "--json")
    assert code == 0, err
    assert json.loads(again) == json.loads(out) | {"checkpoint": str(tmp_path / "exported")}
