"""The benchmarks measure what they claim to measure."""

import argparse
import dataclasses
import json
import math
import pathlib
import resource
import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from benchmarks import (
    grouped_product,
    latent_thoughts,
    made_up,
    maxtext_peer,
    render,
    run_all,
    second_phase,
    toy_shop_clerk,
    train_step,
    trajectory_quality,
)
from benchmarks.ours import WholeRows, fresh, host_batch, matrix_rate, model_config, parts, place
from benchmarks.overrides import with_overrides
from benchmarks.shapes import SHAPES
from benchmarks.worker import Worker, WorkerFailed, take_cpus
from data.policy import find_violations, read_policy
from data.rows.dataset import open_dataset
from maverick_jax.accounting.flops import train_flops_per_token
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.tokenizers.byte_level import CONTROLS
from train.config_files import read_config
from train.objectives.pretrain import Pretrain

FAKE_MAXTEXT = """#!/bin/sh
if [ "$1" = -c ]; then echo /nowhere/maxtext; echo 0.2.5; exit 0; fi
for word in "$@"; do case $word in steps=*) steps=${word#steps=};; esac; done
i=0
while [ $i -lt $((steps - MISSING)) ]; do
    sleep 0.05; echo "I0101 00:00:00 completed step: $i, seconds: 9"; i=$((i+1))
done
echo the last words
exit CODE
"""


def fake_maxtext(directory: pathlib.Path, missing: int = 0, code: int = 0) -> str:
    path = directory / "python"
    path.write_text(FAKE_MAXTEXT.replace("MISSING", str(missing)).replace("CODE", str(code)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(("name", "flops", "parameters"), [("tiny", 0.131e12, 11.5e6), ("big", 1.883e12, 134e6)])
def test_shapes_have_the_documented_sizes(name, flops, parameters):
    shape, config = SHAPES[name], model_config(SHAPES[name])
    assert train_flops_per_token(config, shape.sequence_length) * shape.tokens == pytest.approx(flops, rel=0.005)
    assert config.num_parameters() == pytest.approx(parameters, rel=0.005)


@pytest.mark.slow
def test_whole_rows_equal_pretraining_with_one_document_per_row(mesh_of):
    shape = dataclasses.replace(SHAPES["trivial"], num_hidden_layers=2)
    config = model_config(shape)
    with mesh_of():
        model, batch = fresh(config, parts(config)).model, jax.tree.map(lambda x: x[0], place(host_batch(shape)))
        totals = {"weight": jnp.float32(shape.tokens), "tokens": jnp.float32(shape.tokens)}

        def gradient(objective):
            return jax.jit(jax.value_and_grad(lambda model: objective.loss(model, batch, totals, None)[0]))(model)

        (loss, grads), (packed_loss, packed_grads) = gradient(WholeRows()), gradient(Pretrain())
    np.testing.assert_allclose(loss, packed_loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(packed_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_labels_follow_their_tokens():
    shape = SHAPES["trivial"]
    batch = host_batch(shape)
    np.testing.assert_array_equal(batch["tokens"][..., 1:], batch["labels"][..., :-1])
    assert batch["tokens"].shape == (1, shape.batch_size, shape.sequence_length)
    assert batch["positions"][0, -1].tolist() == list(range(shape.sequence_length))


def test_matrix_rate_is_plausible(mesh_of):
    with mesh_of():
        assert 1e8 < matrix_rate(128) < 1e15


def test_grouped_products_are_timed_beside_a_plain_one(capsys):
    assert grouped_product.main(["--rows", "64", "--hidden", "32", "--rounds", "2"]) == 0
    *told, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert [result[key] for key in ("kernel", "rows", "model", "hidden", "experts")] == ["tiles", 64, 64, 32, 4]
    for name in ("experts", "experts and gradient"):
        rate = result["flops_per_second"][name]
        assert result["ratios"][name] == pytest.approx(rate / result["plain_flops_per_second"])
        assert any(name in line for line in told)
    assert "64 x 64 x 32 x 4 | " in render.render([result])


@pytest.mark.parametrize("fault", [False, True])
def test_errors_of_grouped_products_are_those_of_each_expert(fault):
    """Megablox is interpreted; a fault in the rows of one expert is seen."""
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, w, expert = make(256, 16), make(4, 16, 24), jnp.sort(jnp.asarray(rng.integers(0, 4, 256), jnp.int32))
    backward = grouped_product.MEGABLOX.backward
    wrong = lambda y, w, sizes: backward(y, w.at[2].multiply(1.02), sizes)
    products = dataclasses.replace(grouped_product.MEGABLOX, backward=wrong if fault else backward)
    calls, errors = grouped_product._products(products, x, w, expert)
    assert {name: flops for name, (_, flops) in calls.items()} == dict.fromkeys(errors, 2 * 256 * 16 * 24)
    assert errors["forward"] < 1e-5 and errors["weights"] < 1e-5
    assert errors["backward"] == pytest.approx(0.02, rel=0.01) if fault else errors["backward"] < 1e-5


def test_maxtext_step_times_are_the_times_between_its_lines(tmp_path):
    maxtext = maxtext_peer.find(fake_maxtext(tmp_path))
    found = maxtext_peer.run(maxtext, SHAPES["tiny"], dtype="float32", steps=4)
    assert maxtext.version == "0.2.5" and len(found.step_seconds) == 4
    assert all(0.04 < seconds < 5 for seconds in found.step_seconds)
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # a child's peak starts at its parent's
    assert 0 < found.peak_bytes < max(2**30, 1.1 * inherited)


@pytest.mark.parametrize(("missing", "code"), [(2, 0), (0, 3)])
def test_a_failed_maxtext_run_is_an_error(tmp_path, missing, code):
    maxtext = maxtext_peer.find(fake_maxtext(tmp_path, missing, code))
    with pytest.raises(WorkerFailed, match=f"code {code} after {5 - missing} of 5 steps(.|\n)*the last words"):
        maxtext_peer.run(maxtext, SHAPES["tiny"], dtype="float32", steps=2)


def test_a_missing_maxtext_is_an_error(tmp_path):
    with pytest.raises(InputError, match="--maxtext-python"):
        train_step.parse(["--against", "maxtext"])
    with pytest.raises(InputError, match="has MaxText"):
        maxtext_peer.find(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="expected at least 1"):
        train_step.parse(["--steps", "0"])


def test_too_many_processors_is_an_error():
    with pytest.raises(InputError, match="--threads 100000: expected 1 to"):
        take_cpus(100_000)


def test_a_worker_that_ends_early_is_reported():
    with pytest.raises(WorkerFailed, match="ended with code"):
        Worker("benchmarks.no_such_module", [])


def test_run_all_refuses_unknown_names():
    assert list(run_all.choose([], None)) == list(run_all.RUNS)
    assert run_all.choose(["tiny_maxtext"], "/usr/bin/python")["tiny_maxtext"][-1] == "/usr/bin/python"
    with pytest.raises(InputError, match="did you mean tiny_packed"):
        run_all.choose(["tiny_paked"], None)
    with pytest.raises(InputError, match="needs --maxtext-python"):
        run_all.choose(["tiny_maxtext"], None)


def test_the_tables_in_the_docs_are_rendered_from_the_results():
    results = [json.loads(path.read_text()) for path in sorted(render.RESULTS.glob("*.json"))]
    assert f"{render.BEGIN}\n\n{render.render(results)}\n\n{render.END}" in render.PAGE.read_text()


@pytest.mark.slow
def test_the_last_line_is_the_result():
    command = [sys.executable, train_step.__file__, "--steps", "1", "--json", "--threads", "1"]
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    result = json.loads(out.splitlines()[-1])
    assert len(out.splitlines()) == 1
    assert result["ratio"] == pytest.approx(result["step_seconds"] / result["peer_step_seconds"])
    assert 0 < result["fraction_of_peak"] < 1 and result["peak_memory_ratio"] > 0
    for loss in (result["first_loss"], result["peer_first_loss"]):
        assert loss == pytest.approx(math.log(4096), abs=0.2)


# ---- the comparison of weights by kind -------------------------------------------------------------------------------


def test_random_tables_repeat_their_rows_and_are_deterministic():
    for text in made_up.tables(50):
        lines = text.splitlines()
        table = lines[: next(i for i, line in enumerate(lines) if line in lines[:i])]
        assert len(lines) >= 2 * len(table) and set(lines) == set(table)
    assert next(made_up.tables(1)) == next(made_up.tables(9))


def test_random_trajectories_use_only_values_that_occurred_before():
    made = list(made_up.offices(50))
    assert next(made_up.offices(1)) == made[0]
    calls = [call for run in made for step in run.steps for call in step.message.calls]
    assert len({call.name for call in calls}) > 10 and len({str(call.arguments) for call in calls}) > 150
    for run in made:
        text = ""
        for step in run.steps:
            assert all(value in text for call in step.message.calls for value in call.arguments.values())
            text += step.message.text


def test_renamed_ids_are_new_and_consistent():
    told = {
        "user": "jo_doe_1234",
        "reservations": ["ABC123", "ABC124"],
        "flights": [f"HAT{n}" for n in range(100, 300)],
    }
    run = json.dumps({"said": "I am jo_doe_1234, of ABC124 on HAT100; AMOUNT", "result": json.dumps(told)})
    other = made_up.renamed(run, 3)
    assert other == made_up.renamed(run, 3) != made_up.renamed(run, 4)
    found = json.loads(json.loads(other)["result"])
    flat = lambda told: [told["user"], *told["reservations"], *told["flights"]]
    others = dict(zip(flat(told), flat(found), strict=True))
    assert len(set(others.values())) == len(others) and not set(others) & set(others.values())
    user, last, flight = (others[old] for old in ("jo_doe_1234", "ABC124", "HAT100"))
    assert json.loads(other)["said"] == f"I am {user}, of {last} on {flight}; AMOUNT"
    assert made_up.renamed("{}", 0) == "{}"
    with pytest.raises(InputError, match="HAT900: no other id is left for it"):
        made_up.renamed(" ".join(f"HAT{n}" for n in [*range(900, 1000), *range(100, 900)]), 0)


@pytest.mark.slow
def test_prepare_writes_data_tokenizer_and_configs(tmp_path, monkeypatch, capsys):
    """Tasks are separate, the tokenizer has the chat format's control tokens, and the configs are valid."""
    monkeypatch.setattr(trajectory_quality, "TABLES", 40)
    monkeypatch.setattr(trajectory_quality, "OFFICES", 20)
    (tmp_path / "problems").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    turns = [
        {"role": "system", "content": "Fly."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
    ]
    runs = [{"task_id": i % 3, "trial": i // 3, "reward": 1, "traj": turns} for i in range(6)]
    (tmp_path / "runs").write_text("".join(json.dumps(run) + "\n" for run in runs))
    args = argparse.Namespace(
        work=tmp_path / "work", runs=tmp_path / "runs", problems=tmp_path / "problems", held_out=[0, 1], copy_steps=1,
        pretrain_steps=1, steps=1, rate=1e-3)  # fmt: skip
    trajectory_quality.prepare(args)
    tasks = lambda name: {json.loads(line)["task_id"] for line in (args.work / name).read_text().splitlines()}
    assert tasks("learnt.jsonl") == {2} and tasks("held_out.jsonl") == {0, 1}
    for name in ("copy", "pretrain", "tune"):
        config = read_config(str(args.work / f"{name}.yaml"))
        assert set(CONTROLS) <= set(load_tokenizer(config.data.tokenizer).controls)
    for weights in trajectory_quality.WEIGHTS.values():  # valid before the pretraining
        read_config(str(args.work / "tune.yaml"), [f"data.kind_weights={json.dumps(weights)}"])
    data = config.data.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    found = {split: open_dataset(data, split, seed=0).sources for split in ("train", "eval")}
    assert {split: [(s.name, len(s.documents)) for s in sources] for split, sources in found.items()} == {
        "train": [("learnt", 8), ("offices", 20)], "eval": [("held_out", 4)]}  # fmt: skip
    trajectory_quality.prepare(args)
    args.steps = 2
    with pytest.raises(InputError, match=r"created with .*'steps': 1.*, not .*'steps': 2"):
        trajectory_quality.prepare(args)
    args.work = tmp_path / "other"
    for args.held_out in ([3, 9], [0, 2]):
        with pytest.raises(InputError, match=r"--held-out . .: expected some of the tasks 0 to 2 of "):
            trajectory_quality.prepare(args)
    assert not args.work.exists()
    args.held_out, args.rate = [0, 1], -1.0
    with pytest.raises(InputError, match=r"optimizer.learning_rate: must be greater than 0, got -1.0"):
        trajectory_quality.prepare(args)
    args.rate = 1e-3
    trajectory_quality.prepare(args)  # refused settings do not claim a folder
    files = [str(args.runs), str(args.problems), "--work", str(args.work)]
    with pytest.raises(SystemExit):
        trajectory_quality.main([*files, "--held-out", "3", "9"])
    assert "error: --held-out 3 9: expected some of the tasks 0 to 2 of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--generate", "-3"], "--generate and --seeds: expected numbers from 0"),
        (["--seeds", "1", "-1"], "--generate and --seeds: expected numbers from 0"),
        (["--plot", "nowhere/found.png"], "--plot nowhere/found.png: no such folder: "),
        (["--variants", "calls"], "choose from equal, kinds, with_failed, with_context, calls_first"),
    ],
)
def test_bad_arguments_are_refused_before_training(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        trajectory_quality.main(["runs", "problems", "--work", str(tmp_path / "work"), *words])
    assert message in capsys.readouterr().err.replace("'", "") and not (tmp_path / "work").exists()


def test_summary_table_and_plot(tmp_path):
    rates = {"name_accuracy": 0.5}  # no call had arguments
    told = {
        "eval_kind_loss": {"call_name": 1.0, "call_arguments": 2.0, "decision": 3.0, "text": 4.0},
        "eval_decision_f1": {"call": 0.9, "ask": 0.3}, "eval_call_rates": rates,
        "generated": {"decision_f1": {"answer": 0.6}, "call_rates": rates | {"arguments_exact": 0.25}},
    }  # fmt: skip
    one = trajectory_quality.summary(told)
    assert one["call_name, nats"] == 1 and one["decision F1"] == pytest.approx(0.4) and one["all arguments exact"] == 0
    assert one["decision F1, written"] == pytest.approx(0.2) and one["all arguments exact, written"] == 0.25
    nothing_written = {name: part for name, part in told.items() if name != "generated"}
    assert trajectory_quality.summary(nothing_written) == {k: x for k, x in one.items() if "written" not in k}
    other = {name: 2 * x for name, x in one.items()}
    result = {"steps": 5, "held_out": {"none": [one], "kinds": [one, other]}}
    assert "| call_name, nats | 1.000 | 1.500 (1.000 2.000) |" in trajectory_quality.table(result)
    trajectory_quality.plot(result, tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_only_a_careless_clerk_breaks_rules_and_both_serve_every_customer():
    policy = read_policy("package:toy_shop_policy")
    for careless in (0.0, 1.0):
        runs = toy_shop_clerk.runs(range(60), careless)
        broken = [run.provenance.task for run in runs if find_violations(run, policy)]
        assert all(run.outcome.success for run in runs)
        assert set(broken) == ({"cancel", "change"} if careless else set())


def test_variants_of_latent_thoughts_have_equal_updates_and_flops(tmp_path):
    for variant in ("start", "none"):
        path = tmp_path / f"{variant}-0.yaml"
        path.write_text(yaml.safe_dump(latent_thoughts.run_config(variant, 0, tmp_path)))
        assert len(read_config(str(path), []).in_stages) == len(latent_thoughts.VARIANTS[variant])
    updates = {name: sum(part.updates for part in parts) for name, parts in latent_thoughts.VARIANTS.items()}
    assert updates["text"] == updates["latents"] == updates["pauses"] == updates["none"] - updates["start"]
    passes = sum(part.updates * (1 + part.replaced) for part in latent_thoughts.VARIANTS["latents"])
    assert updates["pauses"] + updates["pauses, same FLOPs"] == passes
    flops = {variant: latent_thoughts.flops(variant, 0, tmp_path) for variant in ("start", "none")}
    assert flops["none"] / flops["start"] == pytest.approx(updates["none"] / updates["start"])


def test_loops_of_latent_thoughts_have_the_text_of_the_start_and_the_rows_of_pauses(tmp_path):
    start, pauses, loops = (latent_thoughts.run_config(name, 0, tmp_path) for name in ("start", "pauses", "loops"))
    assert loops["model"].pop("loops") == {"periods": [0, 1], "times": 1 + latent_thoughts.HOPS}
    assert loops["model"] == start["model"] and loops["optimizer"] == pauses["optimizer"]
    stages = lambda *configs: [(stage["name"], stage["steps"]) for config in configs for stage in config["stages"]]
    assert stages(loops) == stages(start, pauses)


def test_latents_are_replaced_by_nothing_or_by_those_of_another_question():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    is_latent = jnp.array([[False, True, False]] * 2)[..., None]
    np.testing.assert_array_equal(latent_thoughts.zeroed(x, is_latent)[:, 1], 0)
    np.testing.assert_array_equal(latent_thoughts.shuffled(x, is_latent)[:, 1], x[::-1, 1])
    for change in (latent_thoughts.zeroed, latent_thoughts.shuffled):
        np.testing.assert_array_equal(change(x, is_latent)[:, ::2], x[:, ::2])


def test_overrides_are_no_values_of_the_option_before_them():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", nargs="+", type=int)
    args, overrides = with_overrides(parser, ["--seeds", "0", "1", "run.steps=3", "a={b: 1}"])
    assert (args.seeds, overrides) == ([0, 1], ["run.steps=3", "a={b: 1}"])


def test_the_second_phase_has_rules_a_penalty_and_rows_that_fit(tmp_path):
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(second_phase.policy_config(tmp_path, "start", 3, 60)))
    config = read_config(
        str(tmp_path / "second.yaml"), ["data.tokenizer=bytes", "model.vocab_size=512", "model.init_from=null"]
    )
    assert config.objective.check_batch(config.data.batch_size, config.data.sequence_length, 1) == []
    assert config.objective.init()["multiplier"] == 1.0
    assert config.objective.environments["shop"].policy == "package:toy_shop_policy"
