"""Layers that are read for an engine: equal to the model's, and never in memory twice."""

import gc

import jax
import numpy as np
import pytest

from maverick_jax import pretrained
from maverick_jax.inference.engine import EngineSettings, SlotEngine
from maverick_jax.inference.engine.forward import Unrolled
from maverick_jax.model.transformer import Maverick
from tests.helpers import tiny

CONFIG = tiny.model_config(num_hidden_layers=5, no_rope_layer_interval=2)
"""Two periods and a tail."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The same model as a Hugging Face folder and as a run."""
    root = tmp_path_factory.mktemp("models")
    pretrained.save_pretrained(Maverick.init(CONFIG), root / "folder", "float32")
    pretrained.import_checkpoint(root / "folder", root / "run")
    return root


@pytest.mark.parametrize("where", ["folder", "run"])
def test_layers_are_read_once_and_used_as_they_are(paths, where, monkeypatch):
    gc.collect()
    held = lambda: sum(x.nbytes for x in jax.live_arrays())
    before, peaks, place = held(), [], pretrained.place

    def placed(*parts):
        found = place(*parts)
        peaks.append(held() - before)
        return found

    monkeypatch.setattr(pretrained, "place", placed)
    layers = pretrained.load_layers(paths / where)
    leaves = jax.tree.leaves(layers)
    assert max(peaks) == sum(x.nbytes for x in leaves)
    expected = Unrolled.of(pretrained.load_pretrained(paths / where))
    assert jax.tree.structure(layers) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, layers, expected)
    with SlotEngine(layers, None, EngineSettings(slots=1, context=64, keep_bytes=0, lazy=True)) as engine:
        assert all(a is b for a, b in zip(engine._device._weights, leaves, strict=True))
