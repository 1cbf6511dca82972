"""Updates that are done again learn from the same batches, which tells transient faults from persistent ones."""

import pytest

from maverick_jax.errors import SilentCorruption
from tests.helpers.faults import with_flipped_bit
from tests.helpers.small_run import lines, store
from train import run
from train.config_files import read_config

WORDS = [
    *("run.steps=8", "run.eval_every=0", "checkpoint.every=3", "optimizer.accumulation_steps=1", "mesh.data=8"),
    *("model.num_hidden_layers=1", "model.num_local_experts=0", "guard.compare_every=4"),
]


@pytest.mark.parametrize(("times", "fault"), [(1, "transient"), (2, "persistent")])
def test_a_flipped_bit_ends_a_run_with_exit_code_80(runs, tmp_path, monkeypatch, times, fault):
    """In update 4, after the save of update 3. Its comparison finds it, and nothing is saved after it."""
    compile_step, left = run.compile_step, [None] * times

    def faulty(*arguments):
        step = compile_step(*arguments)

        def with_fault(state, batch):
            state, metrics = step(state, batch)
            if int(state.step) == 4 and left:
                left.pop()
                norm = state.model.norm
                norm[...] = with_flipped_bit(norm[...], 5, 12)
            return state, metrics

        return with_fault

    monkeypatch.setattr(run, "compile_step", faulty)
    words = [f"run.dir={tmp_path / 'run'}", f"data.cache_dir={runs.root / 'cache'}", *WORDS]
    with pytest.raises(SilentCorruption, match=f"step 4: device 5 .* a {fault} fault") as error:
        run.train_to_end(read_config(runs.config, words))
    assert error.value.exit_code == 80 and store(tmp_path / "run").steps() == [3]
    last = lines(tmp_path / "run")[-1]
    assert (last["replicas_differ"], last["devices"], last["fault"]) == (["model/norm"], [5], fault)
