"""Sets of episodes: a scripted engine shows what is asked of it, a real one that nothing else changes them."""

import numpy as np
import pytest

from data.environments import CalculatorConfig
from maverick_jax.inference.engine import EngineSettings, SlotEngine
from maverick_jax.text import load_tokenizer
from tests.helpers.scripted_engine import ScriptedEngine
from tests.parity.oracle import our_model, random_parameters, shapes, variant
from train.rollouts.playing import Playing
from train.rollouts.policy_batches import figures
from train.rollouts.settings import RolloutSettings
from train.rollouts.token_episode import End

BYTES = load_tokenizer("bytes")
EOT = BYTES.controls["<|eot|>"]
SETTINGS = RolloutSettings(prompts=3, group=4, max_tokens=112, turn_tokens=40, slots=4, time_limit=None)
CALCULATOR = {"calculator": CalculatorConfig(declare=False)}


def playing(settings=SETTINGS, environments=CALCULATOR, seed=0) -> Playing:
    return Playing(settings, environments, BYTES, seed)


def solver(request) -> list[int]:
    """Calls the tool and repeats its result; every fourth seed guesses 7 instead."""
    text = BYTES.decode(list(request.prompt))
    if "ipython" in text:
        said = text.rpartition("ipython")[2].strip().split("assistant")[0]
    elif request.seed % 4 == 0:
        said = "7"
    else:
        a, sign, b = text.partition("user\n\n")[2].partition("assistant")[0].split()
        said = f"[{ {'+': 'add', '-': 'subtract', '*': 'multiply'}[sign] }(a={a}, b={b})]"
    return [*BYTES.encode(said), EOT]


@pytest.fixture
def scripted():
    engine = ScriptedEngine(BYTES, solver)
    yield engine
    engine.close()


def test_a_set_is_played_in_groups_of_one_task(scripted):
    episodes = playing().play(scripted, 0)
    assert len(episodes) == 12 and all(episode.end is End.OVER for episode in episodes)
    for first in (0, 4, 8):
        group = episodes[first : first + 4]
        assert len({episode.seed for episode in group}) == 1
        assert sorted(episode.reward for episode in group) == [0, 1, 1, 1]  # seeds of a group follow each other
        assert {episode.turns for episode in group} == {1, 2}
    assert len({episode.seed for episode in episodes}) == 3
    assert len(scripted.requests) == 3 + 9  # one for each group, and one for each second turn
    found = figures(episodes, 4)
    assert found["success"] == 0.75 and found["calls"] == 0.75 and found["equal_groups"] == 0
    assert found["turns"] == 1.75 and found["malformed"] == found["cut"] == found["environment_failures"] == 0


def test_sets_seeds_and_environments_give_other_tasks(scripted):
    tasks = lambda number, **more: [e.seed for e in playing(**more).play(scripted, number)]
    one = tasks(0)
    assert one == tasks(0) and not set(one) & set(tasks(1)) and not set(one) & set(tasks(0, seed=1))
    two = {"one": CALCULATOR["calculator"], "other": CalculatorConfig(declare=False, operations=("add",))}
    episodes = playing(environments=two).play(scripted, 1)  # tasks 3, 4, 5
    assert {e.task for e in episodes[:4]} == {"add"} and {e.task for e in episodes[8:]} == {"add"}


class Fails(CalculatorConfig):
    """Environments of which some cannot be made."""

    kind: str = "fails"

    def make(self):
        raise OSError("no licence")


def test_environments_that_cannot_be_made_fail_their_episodes(scripted):
    two = {"sound": CALCULATOR["calculator"], "broken": Fails()}
    episodes = playing(environments=two).play(scripted, 0)
    assert [e.end is End.FAILED for e in episodes] == [False] * 4 + [True] * 4 + [False] * 4
    assert "no licence" in episodes[4].outcome.termination
    assert figures(episodes, 4)["environment_failures"] == pytest.approx(1 / 3)
    assert figures(episodes, 4)["success"] == 0.75  # of the others


@pytest.mark.slow
def test_a_real_engine_plays_the_same_again_whatever_else_it_does():
    config = variant(vocab_size=271, num_hidden_layers=2)
    model = our_model(config, random_parameters(shapes(config)))
    found = []
    for slots in (4, 12):
        settings = EngineSettings(slots=slots, context=112, queue=12, lazy=True)
        with SlotEngine(model, BYTES, settings) as engine:
            found.append(playing().play(engine, 2))
            if slots == 4:
                playing().play(engine, 3)
                engine.load(model)
                found.append(playing().play(engine, 2))
    for one, other in zip(found[0], found[1], strict=True):
        assert (one.tokens, one.log_probs, one.end) == (other.tokens, other.log_probs, other.end)
    same = [one.tokens == other.tokens for one, other in zip(found[0], found[2], strict=True)]
    assert np.mean(same) > 0.9  # other shapes: equal to rounding
    assert len({tuple(e.tokens) for e in found[0]}) > 6
