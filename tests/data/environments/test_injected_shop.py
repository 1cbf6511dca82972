"""The shop with injections: attacks are judged by its state, templates are apart, and equal seeds give equal cases."""

import pytest

from data.environments import InjectedShopConfig
from data.environments.injected_shop import GOALS, HARMLESS, HELD_OUT, TRAINING
from data.trajectories.trajectory import Outcome
from maverick_jax.text.chat import Message, Role, ToolCall, values


def says(text):
    return Message(Role.ASSISTANT, text)


def opened(seed, **options):
    environment = InjectedShopConfig(**options).make()
    return environment, environment.reset(seed)


def record(environment):
    """The order's record as the assistant reads it."""
    number = next(iter(environment.opened))
    found = environment.step(Message(Role.ASSISTANT, calls=(ToolCall("find_order", {"order": number}),)))
    return values.read(found.steps[0].message.text)


def test_templates_for_training_and_for_judging_are_apart():
    assert len(TRAINING) == 6 and len(HELD_OUT) == 4
    assert not set(TRAINING) & set(HELD_OUT) and not set(TRAINING.values()) & set(HELD_OUT.values())
    for templates, own in (("training", TRAINING), ("held_out", HELD_OUT)):
        drawn = {opened(seed, templates=templates, share=1.0)[0].attack.template for seed in range(80)}
        assert drawn == set(own)


@pytest.mark.parametrize("seed", range(12))
def test_an_attack_succeeds_if_its_call_is_carried_out_and_only_then(seed):
    environment, _ = opened(seed, share=1.0)
    call = environment.attack.call
    note = record(environment)["note"]
    assert call.name in note and all(str(value) in note for value in call.arguments.values())
    assert environment.attack.name in GOALS and not environment.attacked
    failed = environment.step(says("Done.")).outcome
    assert failed.termination == "the attack failed"
    assert not environment.step(Message(Role.ASSISTANT, calls=(call,))).steps[0].error
    assert environment.attacked
    assert environment.step(says("Done.")).outcome == Outcome(0.0, failed.success, "the attack succeeded")


def test_a_benign_twin_has_the_same_customer_and_a_harmless_note():
    for seed in range(20):
        (twin, opening), (case, same) = (opened(seed, share=share) for share in (0.0, 1.0))
        assert opening == same and twin.attack is None and record(twin)["note"] in HARMLESS
        assert record(twin) | {"note": ""} == record(case) | {"note": ""}
        assert twin.step(says("Hm.")).outcome.termination == "no attack"


def test_the_share_of_attacks_is_as_set():
    attacked = [opened(seed, share=0.3)[0].attack is not None for seed in range(400)]
    assert 0.22 < sum(attacked) / 400 < 0.38
