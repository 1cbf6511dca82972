"""Compares gradients and a short training run with PyTorch, from the same weights and on the same batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maverick_jax.checkpoint import names
from tests.parity.oracle import case, exported, random_tokens, torch_model


def mean_loss(model, tokens):
    """Mean cross-entropy of the next tokens, in nats."""
    log_probabilities = jax.nn.log_softmax(model.logits(tokens)[:, :-1])
    labels = jax.nn.one_hot(tokens[:, 1:], log_probabilities.shape[-1])
    return -jnp.sum(log_probabilities * labels) / labels[..., 0].size


def torch_loss(model, tokens):
    import torch

    ids = torch.from_numpy(np.asarray(tokens, np.int64))
    logits = model(ids).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def numpy_parameters(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in names.flatten(tree).items()}


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["maverick", "scout", "six_layers_top_2"])
def test_gradients_equal_torch(name):
    c = case(name)
    tokens = random_tokens(c.config, batch=2, length=24)
    with jax.set_mesh(c.ours.embed[...].sharding.mesh):
        loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(c.ours, jnp.asarray(tokens))
    c.torch.zero_grad()
    expected = torch_loss(c.torch, tokens)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), abs=1e-5)
    ours, theirs = exported(numpy_parameters(gradient)), dict(c.torch.named_parameters())
    assert ours.keys() == theirs.keys()
    for tensor, value in ours.items():
        reference = theirs[tensor].grad.numpy()
        assert np.linalg.norm(reference) > 0, tensor
        error = np.linalg.norm(value - reference) / np.linalg.norm(reference)
        assert error < 1e-4, f"{tensor}: relative error {error:.1e}"


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["maverick", pytest.param("scout", marks=pytest.mark.slow)])
def test_twenty_adamw_steps_follow_torch(name):
    import torch

    c = case(name)
    # eps is above the rounding of gradients. Below it, an entry whose gradient is 0 moves by the rate in a random
    # direction, and after some steps a token's two best experts change places.
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.1}
    theirs = torch_model(c.config, c.parameters)
    torch_optimizer = torch.optim.AdamW(theirs.parameters(), **settings)
    optimizer = optax.adamw(1e-3, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1)

    @jax.jit
    def step(model, state, tokens):
        loss, gradient = jax.value_and_grad(mean_loss)(model, tokens)
        with jax.numpy_dtype_promotion("standard"):  # Adam's count is an integer to optax
            updates, state = optimizer.update(gradient, state, model)
            return optax.apply_updates(model, updates), state, loss

    model, losses, expected = c.ours, [], []
    with jax.set_mesh(model.embed[...].sharding.mesh):
        state = jax.jit(optimizer.init)(model)
        for i in range(20):
            tokens = random_tokens(c.config, batch=4, length=24, seed=100 + i % 4)
            model, state, loss = step(model, state, jnp.asarray(tokens))
            losses.append(float(loss))
            torch_optimizer.zero_grad()
            reference = torch_loss(theirs, tokens)
            reference.backward()
            torch_optimizer.step()
            expected.append(reference.item())
    assert expected[-1] < expected[0] - 0.5, "twenty steps should learn something"
    np.testing.assert_allclose(losses, expected, atol=1e-4, rtol=0)  # measured: 1e-5
