"""The schedule of a pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maverick_jax.ops.pipeline import bubble, num_turns, pipelined
from maverick_jax.sharding import make_mesh

L, B, D = 4, 8, 3
ROWS = P(("data", "fsdp", "expert"))


def test_the_bubble_is_the_turns_without_a_microbatch():
    assert (num_turns(4, 8), bubble(4, 8)) == (11, 3 / 11)
    assert (num_turns(1, 8), bubble(1, 8)) == (8, 0)


def stage(periods, x, rows):
    """Periods that depend on their weights and on what belongs to the rows, and return something of each."""

    def period(x, w):
        x = jnp.tanh(x * w[None, :] + rows[:, None])
        return x, jnp.sum(x, axis=1)

    return jax.lax.scan(period, x, periods)


def loss(run, periods, x, rows):
    out, seen = run(periods, x, rows)
    return jnp.sum(out**2) + jnp.sum(jnp.sin(seen)), (out, seen)


@pytest.mark.parametrize(("stages", "fsdp", "microbatches"), [(2, 2, 4), (2, 2, 1), (4, 2, 2), (4, 1, 8)])
def test_values_and_gradients_are_those_of_one_device(stages, fsdp, microbatches):
    rng = np.random.default_rng(0)
    periods, x, rows = (rng.normal(size=s).astype(np.float32) for s in ((L, D), (B, D), (B,)))
    of = lambda run: jax.jit(jax.value_and_grad(lambda *a: loss(run, *a), (0, 1), has_aux=True))
    (value, (out, seen)), grads = of(stage)(periods, x, rows)
    with jax.set_mesh(make_mesh({"fsdp": fsdp, "pipeline": stages}, jax.devices()[: fsdp * stages])):
        placed = jax.device_put(periods, P("pipeline")), jax.device_put(x, ROWS), jax.device_put(rows, ROWS)
        run = lambda periods, x, rows: pipelined(stage, periods, x, rows, microbatches)
        (got_value, (got_out, got_seen)), got_grads = of(run)(*placed)
        assert got_out.sharding.spec[0] == ROWS[0]
    np.testing.assert_allclose(got_value, value, rtol=1e-5)
    np.testing.assert_allclose(got_out, out, rtol=1e-5, atol=1e-6)
    assert got_seen.shape == (microbatches, L, B // microbatches)
    rows_of = np.moveaxis(np.asarray(got_seen), 0, 2).reshape(L, B)
    np.testing.assert_allclose(rows_of, seen, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got_grads, grads)
