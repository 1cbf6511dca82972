"""`shard_map` inside the stages of a pipeline."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from maverick_jax.ops.stages import num_stages, over_stages, shard_map, with_stages
from maverick_jax.sharding import make_mesh

TOKENS = P(("fsdp", "expert"))


@jax.custom_vjp
def doubled(x, times):
    """x times 2^`times`, in a loop whose length is data."""
    return lax.fori_loop(0, times, lambda _, x: 2 * x, x)


doubled.defvjp(lambda x, times: (doubled(x, times), times), lambda times, dy: (doubled(dy, times), None))


def stage(x, w, times, offset):
    """What a layer does inside `shard_map`: a loop whose length is data, a sum over devices, a constant."""

    def local(x, w, times, offset):
        most = lax.pmax(times.max(), ("fsdp", "expert"))
        return doubled(x * w, most) + offset + lax.psum(jnp.sum(x), "fsdp")

    return shard_map(local, in_specs=(TOKENS, P(), TOKENS, P()), out_specs=TOKENS)(x, w, times, offset)


def arrays():
    rng = np.random.default_rng(0)
    numbers = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return numbers(2, 4), numbers(2), rng.integers(0, 5, (2, 4)).astype(np.int32), numbers()


def loss(apply, x, w, times, offset):
    return jnp.sum(jnp.sin(apply(x, w, times, offset)))


def of_each(x, w, times, offset):
    """The twin: one stage after the other on a mesh without a pipeline."""
    return jnp.stack([stage(*parts, offset) for parts in zip(x, w, times, strict=True)])


def test_stages_equal_one_call_after_the_other():
    x, w, times, offset = arrays()
    with jax.set_mesh(make_mesh({"fsdp": 2, "expert": 2}, jax.devices()[:4])):
        put = lambda a, spec: jax.device_put(a, spec)
        args = put(x, P(None, *TOKENS)), put(w, P()), put(times, P(None, *TOKENS)), put(offset, P())
        expected = jax.jit(jax.value_and_grad(functools.partial(loss, of_each), (0, 1, 3)))(*args)
    with jax.set_mesh(make_mesh({"fsdp": 2, "expert": 2, "pipeline": 2})):
        args = put(x, with_stages(TOKENS)), put(w, with_stages(P())), put(times, with_stages(TOKENS)), put(offset, P())
        piped = lambda x, w, times, offset: over_stages(lambda *a: stage(*a, offset))(x, w, times)
        found = jax.jit(jax.value_and_grad(functools.partial(loss, piped), (0, 1, 3)))(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_a_device_computes_its_own_stage_only():
    x, shapes = arrays()[0], []

    def local(x):
        shapes.append(x.shape)
        return x

    with jax.set_mesh(make_mesh({"fsdp": 2, "expert": 2, "pipeline": 2})):
        assert num_stages() == 2
        x = jax.device_put(x, with_stages(TOKENS))
        mapped = jax.jit(over_stages(lambda x: shard_map(local, in_specs=TOKENS, out_specs=TOKENS)(x)))
        assert mapped(x).sharding.spec == with_stages(TOKENS)
        text = mapped.lower(x).compile().as_text()
    assert set(shapes) == {(1,)} and "all-gather" not in text


def test_gathered_positions_keep_their_type():
    """`jax.shard_map` refuses `reduced` arrays where an axis of the mesh is mapped."""
    x = np.arange(16, dtype=np.float32).reshape(2, 8)

    def gathered_and_split(x):
        gather = lambda x: lax.all_gather(x, "tensor", axis=0, tiled=True, to="reduced")
        whole = shard_map(gather, in_specs=P("tensor"), out_specs=P(None, reduced={"tensor"}))(x)
        assert jax.typeof(whole).sharding.spec.reduced == {"tensor"}

        def own(x):
            return lax.dynamic_slice_in_dim(lax.pcast(x, ("tensor",), to="varying"), 4 * lax.axis_index("tensor"), 4)

        return shard_map(own, in_specs=P(None, reduced={"tensor"}), out_specs=P("tensor"))(whole)

    with jax.set_mesh(make_mesh({"tensor": 2, "pipeline": 2}, jax.devices()[:4])):
        placed = jax.device_put(x, with_stages(P("tensor")))
        found = jax.jit(over_stages(gathered_and_split))(placed)
        assert found.sharding.spec == with_stages(P("tensor"))
    np.testing.assert_array_equal(found, x)
