"""What a config that is shipped for H200 compiles to there: read off the program, at a depth of two periods."""

import collections
import re
from typing import NamedTuple

import jax
import pytest

from launch import compiled_plan, plan
from maverick_jax.accounting import compiled as accounts
from maverick_jax.accounting.compiled import Collective
from maverick_jax.accounting.hlo import Program, arrays_of
from maverick_jax.accounting.topologies import topology
from tests.helpers.compilation import AS_USERS_DO
from train.ahead import lower_ahead
from train.config_files import read_config

pytestmark = pytest.mark.compilers

LAYERS, LENGTH = 8, 2048
WORDS = [f"model.num_hidden_layers={LAYERS}", f"data.sequence_length={LENGTH}", "model.attention_chunk_size=1024"]
"""A scan of fewer turns and shorter rows than the config's, so that the compiler is done sooner."""
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


class Step(NamedTuple):
    """A compiled step and its closed form."""

    program: Program
    collectives: list[Collective]
    closed: dict

    def sent(self, kind: str) -> int:
        """Bytes that a device sends by collectives of a kind."""
        return sum(c.total for c in self.collectives if c.kind == kind)


@pytest.fixture(scope="module")
def step() -> Step:
    """The step of Maverick on 512 H200. Its loops over further rounds of the exchange do not turn."""
    config = read_config("pretrain_maverick_h200x512", WORDS)
    ahead = lower_ahead(config, topology("h200:512"))
    with jax.set_mesh(ahead.mesh):
        text = ahead.lowered.compile(AS_USERS_DO).as_text()
        trips = compiled_plan.Trips(config.model.network, plan._layout(config, dict(ahead.mesh.shape), "gpu"))
    program = Program.parse(text, trips)
    return Step(program, accounts.collectives(program, dict(ahead.mesh.shape)), plan.plan(config))


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_gathers_and_scatters_send_what_the_plan_says(step):
    """To the byte: weights are gathered, and gradients scattered, in the compute dtype and as often as the closed form
    says."""
    sent = step.closed["communication_bytes_per_step"]
    assert (step.sent("all-gather"), step.sent("reduce-scatter")) == (sent["gather"], sent["reduce_scatter"])


def test_all_reduces_hold_no_gradient_of_a_dense_matrix(step):
    """The closed form sums norms' and routers' gradients over replicas; what is left is the numbers of a step."""
    sent = step.closed["communication_bytes_per_step"]["all_reduce"]
    assert 0 <= step.sent("all-reduce") - sent < 1e5


# ---- attention -------------------------------------------------------------------------------------------------------


def test_the_forward_pass_of_attention_runs_once(step):
    """Under `remat: attention`, in one kernel for each layer: no call is repeated in the backward pass."""
    calls = accounts.kernels(step.program)
    assert (calls[FORWARD], calls[BACKWARD]) == (LAYERS, LAYERS)


def is_of_pairs(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether an array has a number for each query of a block and each key, as scores and masks have."""
    lengths = range(256, LENGTH + 1, 256)
    return kind in ("pred", "f32", "bf16") and len(shape) > 1 and shape[-2] in lengths and shape[-1] in lengths


def test_no_loop_carries_a_mask(step):
    loops = [i for computation, _ in step.program.scheduled() for i in computation.instructions if i.opcode == "while"]
    assert {loop.trips for loop in loops} >= {LAYERS // 4}
    assert [a for loop in loops for a in arrays_of(loop.result) if is_of_pairs(*a)] == []


@pytest.mark.parametrize(("kind", "shape"), [("pred", (4, 1, 1, 256, 2048)), ("f32", (4, 8, 5, 256, 512))])
def test_masks_are_recognized(kind, shape):
    assert is_of_pairs(kind, shape) and not is_of_pairs("f32", (2, 4, LENGTH, 5120))


# ---- exchange --------------------------------------------------------------------------------------------------------


def test_exchanges_send_what_the_plan_says(step):
    sent = step.closed["communication_bytes_per_step"]["all_to_all"]
    assert step.sent("all-to-all") == pytest.approx(sent, rel=1e-4)


def test_loops_of_unknown_count_hold_further_rounds_of_exchanges_alone(step):
    """Each also runs outside of it, where other work can hide it."""
    exchanges = [c for c in step.collectives if c.kind == "all-to-all" and "dispatch" in c.op_name]
    first = collections.Counter(place_of(c) for c in exchanges if not c.dynamic)
    further = collections.Counter(place_of(c) for c in exchanges if c.dynamic)
    assert first and first.keys() >= further.keys()


def place_of(exchange: Collective) -> str:
    """The `shard_map` that an exchange is in."""
    return re.sub(r"/shard_map/.*", "", exchange.op_name)


# ---- shared rows -----------------------------------------------------------------------------------------------------


def test_chunked_layers_send_nothing_over_context():
    """Of a step whose rows 64 devices share, at a depth of two periods; global layers pass keys on."""
    chunk, context = 1024, 64
    length = 2 * context * chunk
    words = [f"model.num_hidden_layers={LAYERS}", f"model.attention_chunk_size={chunk}", f"data.cell={chunk}"]
    config = read_config("pretrain_maverick_1m_h200x512", [*words, f"data.sequence_length={length}"])
    assert config.mesh.context == context
    ahead = lower_ahead(config, topology("h200:512"))
    with jax.set_mesh(ahead.mesh):
        text = ahead.lowered.compile(AS_USERS_DO).as_text()
    found = accounts.collectives(Program.parse(text, lambda loop: 1), dict(ahead.mesh.shape))
    within = lambda scope: [c for c in found if "context" in c.axes and f"/{scope}/" in c.op_name]
    assert [c for c in within("chunked") if c.bytes > 8] == []
    assert {c.kind for c in within("global")} == {"collective-permute"}
