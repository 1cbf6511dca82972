"""Learning rates by role: which arrays they move, what the metrics say, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.parameters import ROLES, by_name
from tests.helpers import tiny
from train.advice import warnings
from train.config_files import read_config
from train.optimizers import AdamW, Muon
from train.optimizers.multipliers import Multipliers
from train.state import init_state
from train.trainable.config import TrainableConfig
from train.trainable.lora import LoraConfig

CONFIG = tiny.model_config(num_hidden_layers=2)
FACTORS: dict[str, float] = {"router": 0.5, "embed": 2.0, "attention": 4.0, "experts": 0.25}
PLAIN = {"learning_rate": 3e-3, "warmup_steps": 2, "weight_decay": 0.1}
SPLIT = {"fsdp": 2, "expert": 2, "tensor": 2}


def updates(optimizer, trainable: TrainableConfig = tiny.TRAINABLE) -> dict[str, np.ndarray]:
    """The first update of every trained array, from made-up gradients."""
    tx, objective = optimizer.build(tiny.STEPS, CONFIG, trainable.selection()), tiny.PRETRAIN
    heads = trainable.adapters(CONFIG)

    def first(seed):
        state = init_state(seed, config=CONFIG, rules=tiny.RULES, optimizer=tx, objective=objective, heads=heads)
        trained = tx.selection.select(state.model, state.heads)
        gradients = jax.tree.map(lambda x: 0.1 * jnp.sin(1 + x.astype(jnp.float32)), trained)
        return tx.transform.update(gradients, state.opt_state, trained, rates=tx.rates(state.step, state.skipped))[0]

    return {name: np.asarray(x) for name, x in names.flatten(jax.jit(first)(0)).items()}


@pytest.mark.parametrize("sizes", [{}, pytest.param(SPLIT, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_an_update_is_multiplied_by_its_roles_factor(kind, sizes, mesh_of):
    """Decay included: the sum of direction and decay is scaled, as by a learning rate. To the bit, for the factors are
    powers of two."""
    with mesh_of(**({"data": 1} | sizes)):
        plain, scaled = (updates(kind(**PLAIN, **more)) for more in ({}, {"multipliers": Multipliers(**FACTORS)}))
    roles = {name: p.role for name, p in by_name(CONFIG).items()}
    assert plain.keys() == roles.keys()
    for name, update in plain.items():
        assert np.abs(update).max() > 0, name
        np.testing.assert_array_equal(scaled[name], FACTORS.get(roles[name], 1) * update, err_msg=name)


def test_adapters_have_the_role_of_their_matrix(mesh_of):
    trainable = TrainableConfig(parameters=("norms",), lora=LoraConfig(targets=("attention", "mlp")))
    with mesh_of(data=1):
        plain, scaled = (
            updates(AdamW(**PLAIN, multipliers=Multipliers(**factors)), trainable) for factors in ({}, {"attention": 4})
        )
    factors = {name: 4 if "/attention/" in name and name.startswith("heads/") else 1 for name in plain}
    assert set(factors.values()) == {1, 4}
    for name, update in plain.items():
        np.testing.assert_array_equal(scaled[name], factors[name] * update, err_msg=name)


def test_metrics_say_the_rate_of_each_role_with_a_factor(mesh_of):
    """Through the schedule: half of the peak in the first of two warmup steps."""
    optimizer = AdamW(**PLAIN, multipliers=Multipliers(router=0.5, embed=2.0, head=1.0))
    with mesh_of(data=1):
        init, step = tiny.jitted(CONFIG, optimizer)
        _, metrics = step(init(0), tiny.placed(tiny.batch(CONFIG)))
    found = {name: float(x) for name, x in metrics.items() if name.startswith("learning_rate")}
    expected = {"learning_rate": 1.5e-3, "learning_rate_router": 7.5e-4, "learning_rate_embed": 3e-3}
    assert found == pytest.approx(expected, rel=1e-6)


def test_there_is_a_factor_for_every_role():
    assert tuple(Multipliers.model_fields) == ROLES and Multipliers().named() == {}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("routr=0.5", r"optimizer\.multipliers\.routr: unknown key; did you mean optimizer\.multipliers\.router\?"),
        ("router=0", r"router: must be greater than 0, got 0; trainable\.parameters without the role freezes it"),
        ("router=-1", r"router: must be greater than 0, got -1"),
        ("router=.inf", r"optimizer\.multipliers\.router: "),
        ("vision=2", r"vision: the model has no parameters of vision; it has router, attention, .*, head$"),
    ],
)
def test_other_factors_are_refused(word, said):
    with pytest.raises(InputError, match=said):
        read_config("pretrain_tiny", [f"optimizer.multipliers.{word}"])


def test_a_factor_of_what_is_not_trained_is_named():
    words = ["optimizer.multipliers={router: 0.5, embed: 2}", "trainable.parameters=[router, norms]"]
    (line,) = warnings(read_config("pretrain_tiny", [*words, "optimizer.min_ratio=0.1"]))
    assert line == (
        "optimizer.multipliers.embed: 2 has no effect: what is trained (section trainable) is router, norms"
    )
    lora = ["optimizer.multipliers={attention: 0.5}", "trainable.lora={targets: [q_proj]}"]
    assert warnings(read_config("pretrain_tiny", lora)) == []
