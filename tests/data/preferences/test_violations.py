"""Pairs about rules: runs of one task, and violations that are put into runs, each confirmed by the detector."""

import dataclasses
import json

import pytest

from data.config import DataConfig
from data.policy import find_violations, read_policy
from data.preferences.violations import FOUND, INJECTED, TWINS, injected, of_violations
from data.rows.dataset import open_dataset
from data.sources.preferences import PreferencesConfig
from data.trajectories.formats import ours
from data.trajectories.toy_shop import generate
from data.trajectories.trajectory import Outcome, Provenance, Step, Trajectory
from maverick_jax.text.chat import Message, Role, ToolCall

POLICY = read_policy("package:toy_shop_policy")
RUNS = [dataclasses.replace(run, provenance=Provenance(id=str(i), task=str(i))) for i, run in enumerate(generate(40))]


def hasty(run: Trajectory) -> Trajectory:
    """A run of the same task that cancels the order without a look at it, and goes on."""
    first = next(i for i, step in enumerate(run.steps) if step.message.role is Role.ASSISTANT)
    call = Step(Message(Role.ASSISTANT, calls=(ToolCall("cancel_order", {"order": "Z1"}),)))
    rest = [Step(Message(Role.TOOL, "Error: no order Z1"), True), Step(Message(Role.ASSISTANT, "I cannot."))]
    return dataclasses.replace(run, steps=[*run.steps[:first], call, *rest], outcome=Outcome(0.0, False))


def test_a_run_that_keeps_the_rules_is_preferred_to_one_of_its_task_that_does_not():
    failed = dataclasses.replace(RUNS[1], outcome=Outcome(0.0, False))
    pairs = list(of_violations([RUNS[0], hasty(RUNS[0]), failed, hasty(failed)], POLICY, per_task=1))
    found = [pair for pair in pairs if pair.origin.startswith(FOUND)]
    assert [(pair.chosen, pair.task, pair.origin) for pair in found] == [(RUNS[0], "0", "violations: U3")]
    assert found[0].rejected.steps[-1].message.calls[0].name == "cancel_order", "it ends with the violation"


def test_injected_violations_are_confirmed_and_their_twins_prefer_the_call():
    made = [pair for run in RUNS for pair in injected(run, POLICY, 8)]
    origins = {pair.origin for pair in made}
    assert origins == {f"{INJECTED}: {rule}" for rule in ("U2", "U3", "U4", "U5")} | {TWINS}
    for pair in made:
        chosen, rejected = pair.chosen, pair.rejected
        assert chosen.steps[:-1] == rejected.steps[:-1] and find_violations(chosen, POLICY) == []
        found = find_violations(rejected, POLICY)
        assert {v.step for v in found} == (set() if pair.origin == TWINS else {len(rejected.steps) - 1})
        if pair.origin == TWINS:
            assert chosen.steps[-1].message.calls and not rejected.steps[-1].message.calls
    assert all(sum(1 for _ in injected(run, POLICY, 2)) <= 2 for run in RUNS)
    assert [pair.id for run in RUNS for pair in injected(run, POLICY, 8)] == [pair.id for pair in made]


def test_a_policy_and_pairs_of_violations_require_each_other():
    for options in ({"make": "violations"}, {"make": "outcomes", "policy": "package:toy_shop_policy"}):
        with pytest.raises(ValueError, match="require each other"):
            PreferencesConfig.model_validate(options)


def test_a_source_makes_pairs_and_a_source_of_runs_leaves_violations_out_of_the_loss(tmp_path):
    path, good = tmp_path / "runs.jsonl", [run for run in RUNS if run.outcome.success][:3]
    path.write_text("".join(ours.write(run) + "\n" for run in (*good, *map(hasty, good))))
    policy = "package:toy_shop_policy"

    def opened(format, options, length):
        source = {"path": str(path), "format": format, format: options}
        return open_dataset(DataConfig.model_validate_json(json.dumps({
            "sources": {"runs": source}, "sequence_length": length, "held_out_fraction": 0, "shuffle": False,
            "cache_dir": str(tmp_path / "cache")})), "train", seed=0)  # fmt: skip

    pairs = opened("preferences", {"make": "violations", "policy": policy}, 4096)
    made = pairs.sources[0].store.meta["pairs"]["origins"]
    assert made["violations: U3"] == 3 and any(name.startswith(INJECTED) for name in made)
    runs = opened("trajectories", {"policy": policy}, 2048)
    counts = runs.sources[0].store.meta["runs"]["violations"]
    assert (counts["runs_with_violations"], counts["rules"]["U3"]) == (3, {"violations": 3, "runs": 3})
    plain = opened("trajectories", {}, 2048)
    rows = [(runs.row(i), plain.row(i)) for i in range(runs.num_rows())]
    assert all((a["tokens"] == b["tokens"]).all() for a, b in rows)
    lost = [
        i for a, b in rows for i in (a["loss_weights"] != b["loss_weights"]).nonzero()[0] if a["loss_weights"][i] == 0
    ]
    assert lost and sum(b["loss_weights"].sum() - a["loss_weights"].sum() for a, b in rows) > 0
