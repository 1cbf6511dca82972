"""Latents of a batch: too many for the passes are refused, or logged once; their token must be the data's."""

import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.latent import LatentConfig
from maverick_jax.text import load_tokenizer
from tests.helpers import tiny
from train.config import RunConfig, misfits
from train.latents import LatentCheck, check_latent_token, latents_of_segments

L = 9
ROWS = {
    "tokens": np.array([[1, L, L, 2, L, 3, L, 0], [1, 2, L, 1, 1, L, 1, L]], np.int32),
    "segment_ids": np.array([[1, 1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 2, 2, 2, 2, 0]], np.int32),
}


def test_latents_are_counted_over_all_spans_of_a_segment_and_not_in_padding():
    np.testing.assert_array_equal(latents_of_segments(ROWS, L)[:, :4], [[0, 3, 1, 0], [0, 1, 1, 0]])


def test_a_segment_with_more_latents_than_passes_is_refused():
    LatentCheck(LatentConfig(token_id=L, passes=3))(ROWS)
    with pytest.raises(InputError, match=r"model.latent.passes: 2, and row 0 .* 3 latents.* expected at least 3"):
        LatentCheck(LatentConfig(token_id=L, passes=2))(ROWS)


def test_inexact_latents_are_logged_once(caplog):
    check = LatentCheck(LatentConfig(token_id=L, passes=2, exact=False))
    check(ROWS)
    check(ROWS)
    (record,) = caplog.records
    assert "latents are inexact: model.latent.passes is 2, and row 0" in record.getMessage()
    assert "as have 1 of 2 rows" in record.getMessage()


def config_with(latent: dict) -> RunConfig:
    model = {"vocab_size": 300, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "latent": latent}
    model |= {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size_mlp": 8, "no_rope_layer_interval": 0}
    data = {"sources": {"chain": {"kind": "chain"}}}
    return RunConfig.model_validate({"run": {"name": "x", "steps": 1}, "model": model, "data": data})


def test_a_pipeline_is_refused():
    found = dict(misfits(config_with({"token_id": 9}), {"pipeline": 2}))
    assert found["model.latent"] == "latent thoughts are not computed with mesh.pipeline=2; expected mesh.pipeline=1"


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [("bytes_thinking", "expected 273, the id of"), ("bytes", "expected a tokenizer with <.reasoning_reserved")],
)
def test_a_model_that_takes_another_token_for_the_place_of_a_latent_is_refused(tokenizer, expected):
    with pytest.raises(InputError, match=f"model.latent.token_id: 272; {expected}"):
        check_latent_token(config_with({"token_id": 272}), load_tokenizer(tokenizer))


# ---- training --------------------------------------------------------------------------------------------------------

LENGTH = 16


def config_of(**changes):
    small = {"num_hidden_layers": 2, "no_rope_layer_interval": 2, "num_local_experts": 0, "initializer_range": 0.2}
    return tiny.model_config(**small, latent=LatentConfig(token_id=63, passes=2), **changes)


def batch(step: int, microbatches: int = 1) -> dict:
    """One whose documents have up to two latents each."""
    found = tiny.batch(config_of(), step, rows=4, length=LENGTH, microbatches=microbatches)
    tokens = np.where(found["tokens"] == 63, 0, found["tokens"])
    for place in (1, 2, LENGTH - 4):
        tokens[..., place] = 63
    return found | {"tokens": tokens}


def stepped(*batches: dict):
    init, step = tiny.jitted(config_of())
    state = init(0)
    for each in batches:
        state, _ = step(state, tiny.placed(each))
    return {name: np.asarray(x) for name, x in names.flatten(state.model).items()}


@pytest.fixture
def one_device(mesh_of):
    with mesh_of(data=1):
        yield


@pytest.mark.slow
def test_accumulation_equals_the_large_batch_and_trains_the_feedback(one_device):
    whole, parts = stepped(batch(0)), stepped(batch(0, microbatches=2))
    for name, expected in whole.items():
        np.testing.assert_allclose(parts[name], expected, atol=2e-6, rtol=2e-5, err_msg=name)
    assert np.abs(whole["latent/matrix"]).max() > 1e-4 and np.abs(whole["latent/gain"]).max() > 1e-4
