"""Decoding with a cache equals the whole forward pass, across chunk borders; sampling follows its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.errors import InputError
from maverick_jax.inference import Request, Sampling, generate, sample_tokens
from maverick_jax.inference.cache import decode, held_positions, prefill
from maverick_jax.inference.sampler import _choose, choose, stream
from maverick_jax.sharding import make_mesh
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer
from tests.parity.oracle import (
    MODELS,
    case,
    our_model,
    random_parameters,
    random_tokens,
    shapes,
    torch_logits,
    variant,
)

SLIDING = variant(local_attention="sliding_window", num_hidden_layers=5)
TEXT = variant(vocab_size=271, num_hidden_layers=3)
"""A model with the vocabulary of the byte tokenizer."""


@pytest.fixture(scope="module")
def text_model():
    return our_model(TEXT, random_parameters(shapes(TEXT)))


def decoded_logits(model, tokens: np.ndarray, prompt: int, capacity: int = 64) -> np.ndarray:
    """Logits [B, T - prompt + 1, V] after the prompt and after each later token, one token at a time."""
    B, T = tokens.shape
    with jax.set_mesh(model.embed[...].sharding.mesh):
        padded = jnp.pad(jnp.asarray(tokens[:, :prompt]), ((0, 0), (0, 32 - prompt)))
        logits, cache = prefill(model, padded, jnp.full(B, prompt, jnp.int32), capacity)
        out = [np.asarray(logits)]
        for t in range(prompt, T):
            logits, cache = decode(model, jnp.asarray(tokens[:, t]), jnp.full(B, t, jnp.int32), cache)
            out.append(np.asarray(logits))
    return np.stack(out, axis=1)


@pytest.mark.parametrize("prompt", [1, 8, 21])
@pytest.mark.parametrize("name", ["maverick", "scout"])
def test_decoding_equals_the_whole_forward_pass(name, prompt):
    c = case(name)
    tokens = random_tokens(c.config, batch=2, length=40)
    whole = np.asarray(c.ours.logits(tokens))[:, prompt - 1 :]
    np.testing.assert_allclose(decoded_logits(c.ours, tokens, prompt), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [SLIDING, MODELS["unchunked"], MODELS["rope_everywhere"]])
def test_decoding_equals_the_whole_forward_pass_for_other_attention_spans(config):
    model = our_model(config, random_parameters(shapes(config)))
    tokens = random_tokens(config, batch=1, length=30)
    whole = np.asarray(model.logits(tokens))[:, 10:]
    np.testing.assert_allclose(decoded_logits(model, tokens, prompt=11), whole, atol=1e-4, rtol=0)


def test_local_layers_cache_only_one_chunk():
    c = case("maverick")
    with jax.set_mesh(c.ours.embed[...].sharding.mesh):
        _, cache = prefill(c.ours, jnp.zeros((1, 32), jnp.int32), jnp.full(1, 20, jnp.int32), 1024)
    slots = [layer.keys.shape for layer in cache["periods"]]
    assert slots == [(2, 1, 8, 2, 8)] * 3 + [(2, 1, 1024, 2, 8)]  # periods, batch, slots, key heads, head


def test_the_ring_buffer_contains_the_newest_positions():
    held = np.asarray(held_positions(jnp.array([2, 7, 8, 21]), 8))
    assert [sorted(row[row >= 0]) for row in held] == [
        [0, 1, 2],
        list(range(8)),
        list(range(1, 9)),
        list(range(14, 22)),
    ]
    assert all(p % 8 == slot for row in held for slot, p in enumerate(row))


@pytest.mark.oracles
def test_greedy_tokens_are_those_of_the_public_model():
    c = case("maverick")
    prompts = [list(map(int, random_tokens(c.config, 1, n, seed=n)[0])) for n in (5, 13)]
    chosen = np.stack(list(sample_tokens(c.ours, prompts, 20, Sampling(temperature=0))), axis=1)
    for prompt, row in zip(prompts, chosen, strict=True):
        text = [*prompt, *map(int, row)]
        theirs = torch_logits(c.torch, np.array([text]))[0].argmax(-1)
        assert list(theirs[len(prompt) - 1 : -1]) == text[len(prompt) :]


def test_rows_of_a_batch_do_not_affect_each_other():
    """On eight devices, where rows are added so that the mesh divides the batch."""
    c = case("maverick")
    prompts = [[1, 2, 3], list(range(20)), [7]]
    alone = [[int(t[0]) for t in sample_tokens(c.ours, [p], 12, Sampling(temperature=0))] for p in prompts]
    spread = our_model(c.config, c.parameters, make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}, jax.devices()))
    together = np.stack(list(sample_tokens(spread, prompts, 12, Sampling(temperature=0))), axis=1)
    assert together.tolist() == alone


def test_no_token_compiles_anything_new(text_model):
    tokenizer = ByteTokenizer()
    generate(text_model, tokenizer, "abc", max_tokens=4)
    compiled = (prefill._cache_size(), decode._cache_size(), _choose._cache_size())
    generate(text_model, tokenizer, "abcdefgh", max_tokens=20, temperature=0.3, seed=5, top_k=3, top_p=0.5)
    assert (prefill._cache_size(), decode._cache_size(), _choose._cache_size()) == compiled


def test_seed_decides_the_text(text_model):
    tokenizer = ByteTokenizer()
    texts = [generate(text_model, tokenizer, "To be", 16, temperature=1.0, seed=seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    greedy = {generate(text_model, tokenizer, "To be", 16, temperature=0.0, seed=seed) for seed in (3, 4)}
    assert len(greedy) == 1


def test_draws_follow_the_distribution():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]]))
    rows = jnp.broadcast_to(logits, (4000, 4))

    def shares(**sampling):
        return np.bincount(np.asarray(choose(rows, Sampling(**sampling), 0, 0)), minlength=4) / 4000

    np.testing.assert_allclose(shares(), [0.5, 0.25, 0.15, 0.1], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.6), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.4), [1, 0, 0, 0])
    np.testing.assert_allclose(shares(top_k=9), [0.5, 0.25, 0.15, 0.1], atol=0.03)
    squared = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), squared / squared.sum(), atol=0.03)
    np.testing.assert_allclose(shares(temperature=0), [1, 0, 0, 0])


def test_a_sum_that_meets_top_p_ends_the_choice():
    """Probabilities 1/2, 1/4, 1/8, 1/8 and their sums are exact."""
    rows = jnp.broadcast_to(-jnp.log(jnp.array([2.0, 4.0, 8.0, 8.0])), (1000, 4))
    drawn = lambda top_p: set(np.asarray(choose(rows, Sampling(top_p=top_p), 0, 0)).tolist())
    assert drawn(0.5) == {0} and drawn(0.75) == {0, 1}
    assert drawn(0.51) == {0, 1} and drawn(0.76) == {0, 1, 2, 3}  # equal logits all stay


def test_every_seed_step_and_row_draws_with_noise_of_its_own():
    rows = jnp.zeros((64, 1000))
    drawn = lambda seed=0, step=0, first=0: np.asarray(choose(rows, Sampling(), seed, step, first))
    np.testing.assert_array_equal(drawn(), drawn())
    np.testing.assert_array_equal(drawn()[8:], drawn(first=8)[:-8])
    alike = [np.mean(drawn() == other) for other in (drawn(seed=1), drawn(step=1), drawn(first=64))]
    assert max(alike) < 0.05 and len(set(drawn().tolist())) > 50  # by chance 0.001, and 62


def test_the_steps_of_a_text_draw_with_different_noise(text_model):
    """Of a model that knows nothing, in one row."""
    blank = writes(text_model, 0)
    head = jnp.zeros_like(blank.head[...])
    blank.head[...] = head
    tokens = [int(t[0]) for t in sample_tokens(blank, [[1]], 12, Sampling(), seed=3)]
    assert len(set(tokens)) > 8  # of 271 tokens, 12 draws


def writes(model, token: int):
    """A model that always writes `token`: its output matrix uses one feature, which the final norm makes constant."""
    changes = {name: p * np.float32(0) for name, p in random_parameters(shapes(model.config)).items()}
    changes["embed"] = np.ones_like(changes["embed"])
    changes["norm"] = np.ones_like(changes["norm"])
    changes["head"][:, token] = 1
    return our_model(model.config, changes)


@pytest.mark.parametrize("stop", ["<|end_of_text|>", "<|eot|>", "<|eom|>"])
def test_text_ends_at_a_stop_token(text_model, stop):
    tokenizer = ByteTokenizer()
    assert generate(writes(text_model, ord("x")), tokenizer, "", 5, temperature=0) == "xxxxx"
    assert generate(writes(text_model, tokenizer.controls[stop]), tokenizer, "abc", 5, temperature=0) == ""


@pytest.mark.parametrize("stop", ["<|end_of_text|>", "<|eot|>", "<|eom|>"])
def test_nothing_after_a_stop_token_is_text(text_model, stop, monkeypatch):
    tokenizer = ByteTokenizer()
    tokens = iter([np.array([token]) for token in (ord("a"), tokenizer.controls[stop], ord("b"))])
    monkeypatch.setattr("maverick_jax.inference.sampler.sample_tokens", lambda *_: tokens)
    assert "".join(stream(text_model, tokenizer, Request([1], 3))) == "a"


def test_stream_never_splits_a_character(text_model, monkeypatch):
    tokenizer, text = ByteTokenizer(), "a→é"
    tokens = iter([np.array([b]) for b in text.encode()] + [np.array([0xE2])])
    monkeypatch.setattr("maverick_jax.inference.sampler.sample_tokens", lambda *_: tokens)
    assert list(stream(text_model, tokenizer, Request([1], 7))) == ["a", "→", "é", "\ufffd"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -1.0}, "temperature: -1.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_arguments_out_of_range_are_refused(text_model, settings, said):
    with pytest.raises(InputError, match=said):
        generate(text_model, ByteTokenizer(), "abc", **settings)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(InputError, match="expected the tokenizer of this model"):
        generate(case("maverick").ours, ByteTokenizer(), "abc")
    with pytest.raises(InputError, match=r"outside 0\.\.95"):
        next(sample_tokens(case("maverick").ours, [[96]], 1, Sampling()))
