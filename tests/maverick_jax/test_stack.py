"""Layer addresses: each layer has one, and its number and the names of its arrays give the same one."""

import pytest

from maverick_jax.stack import PERIODS, TAIL, Stack, name_in_layer


@pytest.mark.parametrize(
    ("period", "num_periods", "tail"), [(4, 12, 0), (4, 1, 3), (1, 5, 0), (2, 3, 1), (6, 0, 5), (3, 0, 0)]
)
def test_slots_contain_every_layer_once(period, num_periods, tail):
    stack = Stack(period, num_periods, tail)
    assert sorted(layer for slot in stack.slots for layer in slot.layers) == list(range(period * num_periods + tail))
    for layer in range(stack.depth):
        slot, index = stack.place(layer)
        if layer < period * num_periods:
            assert (slot.run, slot.number, index) == (PERIODS, layer % period, layer // period)
            assert slot.layers[index] == layer and slot.stacked == num_periods
        else:
            assert (slot.run, slot.number, index) == (TAIL, layer - period * num_periods, None)
            assert list(slot.layers) == [layer] and slot.stacked is None
        assert stack.find(f"{slot.prefix}attention/q") == (slot, "attention/q")
    for missing in (-1, stack.depth):
        with pytest.raises(IndexError, match=f"no layer {missing}"):
            stack.place(missing)


def test_the_stack_follows_from_names():
    stack = Stack(4, 3, 2)
    found = [f"{slot.prefix}mlp_norm" for slot in stack.slots] + ["embed", "head", "vision/layers/q"]
    assert Stack.of_names(found, 3) == stack
    assert Stack.of_names(["embed"], 0) == Stack(0, 0, 0)


def test_names_outside_layers():
    assert Stack(1, 1, 0).find("embed") is None and name_in_layer("vision/layers/q") is None
    assert name_in_layer("tail/layer_12/moe/shared/up") == "moe/shared/up"
