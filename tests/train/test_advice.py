"""Settings that have no effect are named, and those that have one are not."""

import pytest

from maverick_jax.errors import InputError
from maverick_jax.settings.shipped import run_names
from train.advice import warnings
from train.config_files import read_config, read_run

BASE = ["pretrain_tiny", "optimizer.min_ratio=0.1"]


def told(*words: str) -> list[str]:
    return warnings(read_config(BASE[0], [*BASE[1:], *words]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["optimizer.decay_fraction=0.3"],
            "optimizer.decay_fraction: 0.3 has no effect with optimizer.schedule: cosine",
        ),
        (
            ["optimizer.schedule=constant", "optimizer.min_ratio=0.2"],
            "optimizer.min_ratio: 0.2 has no effect with optimizer.schedule: constant",
        ),
        (
            ["model.num_local_experts=0", "model.expert_capacity_factor=1.5"],
            "model.expert_capacity_factor: 1.5 has no effect with model.num_local_experts: 0",
        ),
        (
            ["model.balance={kind: none, weight: 0.3}"],
            "model.balance.weight: 0.3 has no effect with model.balance.kind: none",
        ),
        (["model.balance.bias_rate=0.3"], "model.balance.bias_rate: 0.3 has no effect"),
        (["logging.profile_steps=5"], "logging.profile_steps: 5 has no effect with logging.profile_start: 0"),
        (["logging.profile_start=2001"], "logging.profile_start: 2001 is beyond run.steps (2000): no step is traced"),
        (
            ["run.eval_every=2001"],
            "run.eval_every: 2001 is beyond run.steps (2000): the run evaluates once, at its end",
        ),
        (
            ["run.steps=60", "run.eval_every=0"],
            "optimizer.warmup_steps: 100 is more than run.steps (60): the learning rate ends at 0.6 of",
        ),
        (
            ["optimizer.schedule=wsd", "optimizer.decay_fraction=1"],
            "optimizer.decay_fraction: 2000 steps and optimizer.warmup_steps (100) are more than run.steps (2000): the "
            "learning rate decays in the 1900 steps after the warmup",
        ),
        (
            ["guard.rollback={after: 12}"],
            "guard.rollback.after: 12 refused updates are more than run.skip_budget (10) allows",
        ),
    ],
)
def test_each_setting_without_effect_is_named(words, said):
    (line,) = told(*words)
    assert line.startswith(said)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["optimizer.schedule=wsd", "optimizer.decay_fraction=0.3", "optimizer.min_ratio=0.2"],
        ["optimizer.schedule=constant"],
        ["guard.rollback={after: 11}"],
        ["model.balance={kind: loss_free_bias, bias_rate: 0.3}"],
        ["logging.profile_start=2000", "logging.profile_steps=5"],
        ["run.steps=100", "run.eval_every=100"],
    ],
    ids=" ".join,
)
def test_settings_with_an_effect_are_not(words):
    assert told(*words) == []


@pytest.mark.parametrize("name", run_names())
def test_shipped_runs_have_no_such_setting(name):
    assert not any(warnings(stage) for stage in read_run(name).in_stages)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.sources={x: {kind: synthetic, split_on: a}}"], "split_on: a key of .*; this one is of kind: synthetic"),
        (["data.sources={x: {kind: synthetic, field: a}}"], "field: a key of .*; this one is of kind: synthetic"),
        (
            ["data.sources={x: {path: a.txt, kind: text, documents: 3}}"],
            "documents: a key of kind: .*synthetic.*; this one is of kind: text",
        ),
        (["data.sources={x: {path: a.txt, kind: text, field: a}}"], "field: a key of .*; this one is of kind: text"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_of_another_kind_of_source_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        read_config("pretrain_tiny", words)
