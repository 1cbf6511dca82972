"""Config sections of reasoning heads and loops."""

import pydantic
import pytest

from maverick_jax.reasoning import Loops, ReasoningHeads
from tests.helpers import tiny


def test_all_layers_with_rotary_embedding_have_heads_unless_some_are_chosen():
    config = tiny.model_config(reasoning_heads=ReasoningHeads())
    assert [spec.reasoning for spec in config.layers] == [True, True, True, False]
    config = tiny.model_config(num_hidden_layers=6, no_rope_layer_interval=3, num_local_experts=0,
                               interleave_moe_layer_step=1, reasoning_heads=ReasoningHeads(layers=(1,)))  # fmt: skip
    assert [spec.reasoning for spec in config.layers] == [False, True, False] * 2


def test_periods_that_repeat_are_visited_several_times():
    shape = {"num_hidden_layers": 7, "no_rope_layer_interval": 2}
    config = tiny.model_config(**shape, loops=Loops(periods=(1, 2), times=3))
    assert config.period_visits == (0, 1, 1, 1, 2)
    assert config.visits == (0, 1, 2, 3, 2, 3, 2, 3, 4, 5, 6)
    assert tiny.model_config(**shape).visits == tuple(range(7))
    assert Loops(periods=(0, 1), times=3).trained_times == 3
    assert Loops(periods=(0, 1), times=3, drawn=True).trained_times == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reasoning_heads": {"layers": (3,)}}, "3 is no layer with rotary embedding of a period; expected some of 0"),
        ({"reasoning_heads": {"schema_heads": 0}}, "schema_heads and scratch_heads are 0"),
        ({"loops": {"periods": (1, 1)}}, r"\[1, 1\] holds no period"),
        ({"loops": {"periods": (0, 2)}}, "expected an end of at most 1, the whole periods of 4 layers"),
    ],
)
def test_what_a_model_cannot_have_is_refused(changes, said):
    with pytest.raises(pydantic.ValidationError, match=said):
        tiny.model_config(**changes)
