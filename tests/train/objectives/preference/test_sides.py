"""Sides without another one, where the loss compares two."""

import json
import shutil

import jax
import pytest

from maverick_jax.errors import InputError
from maverick_jax.sharding import single_device_mesh
from tests.helpers.folders import bytes_model
from train.batches import Feed
from train.config_files import read_config

SIDE = {"prompt": "How many?", "completion": "Forty-two.", "label": True}


def opened(tmp_path, records, *words):
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = f"data.sources={{mine: {{path: {tmp_path / 'records.jsonl'}, format: preferences}}}}"
    more = [source, f"data.cache_dir={tmp_path / 'cache'}", "data.held_out_fraction=0", "run.eval_every=0"]
    return Feed.open(read_config("pretrain_tiny", [*more, *words]))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> str:
    """A reference as the objective's words name it."""
    return f"{{kind: copy, path: {bytes_model(tmp_path_factory.mktemp('reference') / 'model')}}}"


def test_a_loss_of_pairs_refuses_a_source_without_pairs(tmp_path):
    said = r"data\.sources\.mine: 4 of 4 records have one side, and objective\.pair_loss\.kind: simpo compares two"
    with pytest.raises(InputError, match=said):
        opened(tmp_path, [SIDE] * 4, "objective=simpo")


@pytest.mark.parametrize(
    "objective",
    [
        "{kind: preference, pair_loss: {kind: apo_zero}, reference: REFERENCE}",
        "{kind: preference, pair_loss: {kind: simpo}, nll: 0.1}",
    ],
)
def test_what_learns_from_one_side_takes_it(tmp_path, objective, reference):
    words = objective.replace("REFERENCE", reference)
    assert opened(tmp_path, [SIDE] * 4, f"objective={words}").train.num_rows() == 1


def test_sides_from_which_nothing_is_learned_are_counted(tmp_path, caplog):
    ours = {"format": "maverick-pair", "version": 1, "prompt": [{"role": "user", "content": "How many?"}]}
    answer = [{"role": "assistant", "content": "Forty-two."}]
    records = [
        ours | {"chosen": answer, "rejected": [{"role": "assistant", "content": "None."}]},
        ours | {"chosen": answer},
    ]
    opened(tmp_path, records, "objective=simpo")
    assert "1 of 2 records have one side, from which objective.pair_loss.kind: simpo learns nothing" in caplog.text


def test_a_reference_may_go_once_the_data_is_open(tmp_path):
    folder = bytes_model(tmp_path / "model")
    words = f"{{kind: preference, pair_loss: {{kind: apo_zero}}, reference: {{kind: copy, path: {folder}}}}}"
    feed = opened(tmp_path, [SIDE] * 4, f"objective={words}")
    shutil.rmtree(folder)
    assert feed.models.keys() == {"model", "objective.reference"}
    with jax.set_mesh(single_device_mesh()):
        assert feed.placer()


def test_kto_needs_answers_to_other_prompts(tmp_path, reference):
    records = [SIDE | {"prompt": f"How many, {i}?"} for i in range(4)]
    kto = f"objective={{kind: preference, pair_loss: {{kind: kto}}, reference: {reference}}}"
    with pytest.raises(InputError, match=r"mine\.preferences\.mismatched: false, and .*kto reads .*; expected true"):
        opened(tmp_path, records, kto)
    mismatched = "data.sources.mine.preferences={mismatched: true}"
    assert opened(tmp_path, records, mismatched, kto).train.num_rows() == 2
