"""The time to the first token, in closed form, and how many latent thoughts fit into a share of it."""

import pytest

from maverick_jax import parameters
from maverick_jax.accounting.flops import forward_flops_per_token
from maverick_jax.accounting.serving import (
    Rates,
    first_token_seconds,
    latents_for,
    piece_seconds,
    read_bytes,
    slot_bytes,
)
from maverick_jax.config import ModelConfig

DENSE = ModelConfig.from_name("tiny_dense")
MAVERICK = ModelConfig.from_name("maverick_17b_128e", param_dtype="bfloat16", compute_dtype="bfloat16")
H200 = Rates(8 * 650e12, 8 * 4e12)
"""What eight reach."""
COMPUTE, MEMORY = Rates(1e12, 1e30), Rates(1e30, 1e9)
"""Where one of the two takes all the time."""


def test_a_token_reads_its_active_weights_and_many_tokens_read_all():
    table = [p for p in parameters.of_model(MAVERICK) if p.role != "embed"]
    active = sum(parameters.active(p, MAVERICK) for p in table)
    assert read_bytes(MAVERICK, 1, 0) == pytest.approx(2 * active, rel=1e-6)
    assert read_bytes(MAVERICK, 10_000, 0) == pytest.approx(2 * sum(p.size for p in table), rel=1e-6)
    assert read_bytes(MAVERICK, 1, 500) - read_bytes(MAVERICK, 1, 0) == slot_bytes(MAVERICK, 500)


def test_pieces_add_up_to_the_forward_pass():
    """Whose logits are computed at one place alone."""
    head = DENSE.hidden_size * DENSE.vocab_size * 2
    whole = forward_flops_per_token(DENSE, 300) * 300 - 299 * head
    parts = [piece_seconds(DENSE, 100, before, COMPUTE) * COMPUTE.flops for before in (0, 100, 200)]
    assert sum(parts) - 2 * head == pytest.approx(whole, rel=1e-9)


def test_latents_and_the_end_of_the_thought_are_passes_of_one_token():
    found = [first_token_seconds(DENSE, 99, n, MEMORY) for n in range(4)]
    alone = [piece_seconds(DENSE, 1, 100 + i, MEMORY) for i in range(4)]
    assert found[1] == pytest.approx(piece_seconds(DENSE, 100, 0, MEMORY) + sum(alone[:2]), rel=1e-9)
    assert found[3] - found[1] == pytest.approx(sum(alone[2:]), rel=1e-9)
    assert first_token_seconds(DENSE, 3000, 0, MEMORY) > 1.9 * first_token_seconds(DENSE, 1000, 0, MEMORY)


@pytest.mark.parametrize("prompt", [500, 2000, 4000])
def test_the_number_of_latents_is_the_most_within_the_share(prompt):
    plain = first_token_seconds(MAVERICK, prompt, 0, H200)
    for share in (0.15, 0.2):
        n = latents_for(MAVERICK, prompt, share, H200)
        assert n > 0
        assert first_token_seconds(MAVERICK, prompt, n, H200) <= plain * (1 + share)
        assert first_token_seconds(MAVERICK, prompt, n + 1, H200) > plain * (1 + share)


def test_latents_of_maverick_within_15_to_20_percent():
    """Those of docs/reasoning.md, on eight H200."""
    within = lambda prompt: [latents_for(MAVERICK, prompt, share, H200) for share in (0.15, 0.2)]
    assert [within(prompt) for prompt in (2000, 4000, 8000)] == [[2, 3], [6, 8], [13, 17]]
