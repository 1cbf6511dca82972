"""In traces, operations are named after the parts of the model to which they belong."""

import functools
import re

import jax
import pytest
from flax import nnx

from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick, _logits
from maverick_jax.ops.cross_entropy import cross_entropy
from maverick_jax.sharding import make_mesh
from tests.helpers import tiny
from tests.helpers.collectives import compiled_text

PARTS = (
    ("embed",),
    ("layer_0", "attention_norm"),
    ("layer_0", "attention"),
    ("layer_0", "mlp_norm"),
    ("layer_0", "mlp"),
    ("layer_1", "moe", "router"),
    ("layer_1", "moe", "dispatch"),
    ("layer_1", "moe", "experts"),
    ("layer_1", "moe", "shared"),
    ("norm",),
    ("head",),
    ("loss",),
)


@functools.cache
def operations() -> list[list[str]]:
    """The path of each operation of a compiled loss and of compiled logits on two devices of the expert axis."""
    config = tiny.model_config()

    def loss(model, batch):
        hidden, _ = model.hidden(Inputs.of(batch))
        found = cross_entropy(hidden, model.output_weight(), batch["labels"], batch["loss_weights"], rules=tiny.RULES)
        return found, _logits(model, Inputs.of(batch))

    with jax.set_mesh(make_mesh({"expert": 2}, jax.devices()[:2])):
        model = jax.eval_shape(lambda: Maverick(config, rngs=nnx.Rngs(0)))
        batch = {name: x[0] for name, x in tiny.placed(tiny.batch(config)).items()}
        text = compiled_text(loss, model, batch)
    return [path.split("/") for path in re.findall(r'op_name="([^"]*)"', text)]


@pytest.mark.parametrize("part", PARTS, ids="/".join)
def test_operations_are_named_after_the_part(part):
    assert any([name for name in path if name in part] == list(part) for path in operations())
