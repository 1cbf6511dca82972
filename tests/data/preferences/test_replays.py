"""Mistakes are certified by the environment, which carries out a run with the mistake in place."""

import dataclasses
from collections import Counter

import pytest

from benchmarks import toy_shop_clerk
from data.environments import ToyShopConfig
from data.preferences.corruptions import corrupted
from data.preferences.replays import Replays, seed_of
from data.preferences.turn_labels import TurnLabel, labels_of
from data.trajectories.trajectory import Provenance
from maverick_jax.errors import InputError

RUNS = toy_shop_clerk.runs(range(40), careless=0.0)
REPLAYS = Replays(ToyShopConfig().make())


def test_certified_mistakes_make_runs_fail_and_others_are_left_out():
    assert all(REPLAYS.succeeds(run) for run in RUNS)
    pairs = [(run, pair) for run in RUNS for pair in corrupted(run, 6)]
    kept = [pair.id for run in RUNS for pair in corrupted(run, 6, REPLAYS)]
    kinds = Counter(pair.origin for run, pair in pairs if pair.id in kept)
    every = ("wrong number", "wrong argument", "wrong tool", "stops early")
    assert kinds.keys() == {f"corruptions: {kind}" for kind in every}
    harmless = [pair.rejected.steps[-1].message for _, pair in pairs if pair.id not in kept]
    assert any(message.calls and message.calls[0].name == "find_order" for message in harmless), "a look does no harm"
    early = [(run, pair) for run, pair in pairs if pair.origin == "corruptions: stops early"]
    assert all((run.provenance.task != "ask") <= (pair.id in kept) for run, pair in early), "before a needed write"


def test_made_pairs_label_their_turns():
    for run in RUNS[:12]:
        for pair in corrupted(run, 6, REPLAYS):
            chosen, rejected = labels_of(pair)
            last = len(pair.rejected.steps) - 1
            assert set(chosen.values()) <= {TurnLabel.GOOD}
            if pair.origin.endswith("stops early"):
                assert rejected[last] is TurnLabel.PREMATURE
            elif pair.origin.endswith("wrong tool"):
                assert rejected == {}
            else:
                assert rejected[last] is TurnLabel.INCONSISTENT
            assert all(label is TurnLabel.GOOD for i, label in rejected.items() if i != last)


def test_runs_of_another_seed_or_without_one_are_not_certified():
    named = lambda name: dataclasses.replace(RUNS[0], provenance=Provenance(id=name))
    assert seed_of(named("rollout3-17")) == 17
    assert list(corrupted(named("toy_shop-999"), 6, REPLAYS)) == []
    with pytest.raises(InputError, match="names no seed"):
        seed_of(named("shop"))
