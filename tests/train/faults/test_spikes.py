"""The spike gate: scores, its window, the step that it refuses, and its record in checkpoints."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from tests.helpers import tiny
from train.config_files import read_config
from train.faults.spikes import SCORE, SpikeGate, SpikesConfig, judged
from train.objectives import Pretrain
from train.restore import StateParts, contents_of, restore_or_start
from train.state import TrainState

FOUR = SpikesConfig(window=4, threshold=3.0, watch=("loss",))


@pytest.fixture(autouse=True)
def one_device(mesh_of):
    with mesh_of(data=1):
        yield


def fed(gate: SpikeGate, losses, norm: float = 1.0):
    """The gate after these losses, and whether each was good."""
    good = []
    for loss in losses:
        ok, gate, _ = jax.jit(judged)(gate, jnp.float32(loss), jnp.float32(norm))
        good.append(bool(ok))
    return gate, good


def test_a_spike_is_refused_once_the_window_is_full():
    _, good = fed(SpikeGate.empty(FOUR), [1, 50, 1, 2, 900, 60])
    assert good == [True, True, True, True, False, True]  # mean 13.5, deviation 21: 60 is 2.2 of them above


def test_the_score_counts_deviations_of_the_last_accepted_updates():
    losses = [9.0, 3.0, 2.0, 2.5, 3.1]
    gate, _ = fed(SpikeGate.empty(FOUR), losses)
    _, _, metrics = judged(gate, jnp.float32(3.5), jnp.float32(1.0))
    last = np.array(losses[-4:])
    np.testing.assert_allclose(metrics[SCORE], (3.5 - last.mean()) / last.std(), rtol=1e-5)


def test_a_refused_update_does_not_move_the_window():
    gate, _ = fed(SpikeGate.empty(FOUR), [3, 2, 3, 2])
    for loss in (1e6, np.nan, np.inf):
        after, (good,) = fed(gate, [loss])
        assert not good
        np.testing.assert_array_equal(after.recent, gate.recent)
        assert int(after.count) == 4


def test_equal_losses_leave_room_for_noise():
    """Without a least spread, any rise after equal losses would be a spike."""
    assert fed(SpikeGate.empty(FOUR), [2, 2, 2, 2, 2.05, 2.2])[1] == [True] * 5 + [False]


def test_a_fall_is_no_spike():
    assert fed(SpikeGate.empty(FOUR), [3, 2, 3, 2, -500])[1][-1]


def test_each_watched_value_counts():
    both = SpikesConfig(window=2, threshold=3.0)
    gate, _ = fed(SpikeGate.empty(both), [2, 2])
    assert fed(gate, [2], norm=5.0)[1] == [False] and fed(gate, [9])[1] == [False] and fed(gate, [2])[1] == [True]


class Loud(Pretrain):
    """Its loss is 20 larger if the batch's first loss weight is 2; its gradient is not."""

    def loss(self, model, batch, totals, context):
        loss, sums = super().loss(model, batch, totals, context)
        return loss, sums | {"loud": (jnp.max(batch["loss_weights"]) == 2).astype(jnp.float32)}

    def metrics(self, model, sums, totals, context):
        found = super().metrics(model, sums, totals, context)
        return found | {"loss": found["loss"] + 20 * sums["loud"]}


def test_a_spike_changes_nothing_but_counters():
    config = tiny.model_config(num_hidden_layers=1, num_local_experts=0)
    init, step = tiny.jitted(config, objective=Loud())
    state = dataclasses.replace(init(0), gate=SpikeGate.empty(SpikesConfig(window=2, watch=("loss",))))
    for number in range(2):
        state, metrics = step(state, tiny.placed(tiny.batch(config, number)))
    before, bad = arrays(state), tiny.batch(config, 2)
    bad["loss_weights"][0, 0, 0] = 2
    state, metrics = step(state, tiny.placed(bad))
    assert float(metrics[SCORE]) > 6 and int(metrics["skipped"]) == 1
    after = arrays(state)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {"step", "skipped", "tokens"}
    state, metrics = step(state, tiny.placed(tiny.batch(config, 3)))
    assert int(metrics["skipped"]) == 1 and (arrays(state)["model/embed"] != after["model/embed"]).any()


def arrays(state: TrainState) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in names.flatten(state).items()}


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_record_holds_the_values_to_the_bit_in_windows_of_any_size():
    losses = [0.1, 1 / 3, 2.7, 3.9, 5.2]
    gate, _ = fed(SpikeGate.empty(FOUR), losses)
    record = gate.record()
    recent, count = gate.with_record(record)
    assert (recent == np.asarray(gate.recent)).all() and count == 4
    smaller, count = SpikeGate.empty(SpikesConfig(window=2, watch=("loss",))).with_record(record)
    assert smaller.tolist() == [np.float32(losses[-2:]).tolist()] and count == 2
    larger, count = SpikeGate.empty(SpikesConfig(window=6, watch=("loss",))).with_record(record)
    assert larger.tolist() == [[0, 0, *np.float32(losses[-4:]).tolist()]] and count == 4
    other, count = SpikeGate.empty(SpikesConfig(window=2)).with_record(record)
    assert count == 0 and not other.any()  # it has no gradient norms


SMALL = ["model.num_hidden_layers=1", "model.num_local_experts=0", "data.cache_dir=/nowhere"]


def test_checkpoints_fit_runs_with_and_without_a_gate(tmp_path):
    """So a run of an earlier version can turn the gate on, and off again."""
    without, with_gate = ([*SMALL, *more] for more in ([], ["guard.spikes={window: 4}"]))
    parts = {key: StateParts.of(read_config("pretrain_tiny", words), {}) for key, words in
             {"off": without, "on": with_gate}.items()}  # fmt: skip

    def restored(key: str) -> TrainState:
        return restore_or_start(parts[key], CheckpointStore(tmp_path / "checkpoints"), jax.sharding.get_mesh())

    store, fresh = CheckpointStore(tmp_path / "checkpoints"), parts["off"].fresh()
    arrays_off, meta = contents_of(fresh, {"data": "x"})
    assert meta == {"data": "x"} and not any(name.startswith("gate") for name in arrays_off)
    store.save(0, arrays_off, meta, wait=True)
    state = restored("on")
    assert state.gate is not None and int(state.gate.count) == 0 and float(state.gate.threshold) == 6.0
    recent, count = state.gate.with_record({"loss": [1.5], "grad_norm": [0.1]})
    filled = dataclasses.replace(state.gate, recent=jnp.asarray(recent), count=jnp.asarray(count))
    arrays_on, meta = contents_of(dataclasses.replace(state, gate=filled), {})
    store.save(1, arrays_on, meta, wait=True)
    assert arrays_on.keys() == arrays_off.keys()
    again = restored("on").gate
    assert again is not None and again.record() == filled.record()
    assert restored("off").gate is None
