"""What reasoning heads and loops need of a run: marks of rendered rows, and room for them."""

import numpy as np
import pytest

from data.rows.dataset import open_dataset
from data.trajectories.kinds import TokenKind, marks_of, token_kinds
from maverick_jax.errors import InputError
from maverick_jax.reasoning import Loops, Mark, ReasoningHeads
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import render
from tests.helpers import tiny
from tests.helpers.trajectory_rows import data_config, short_run
from train.objectives import Pretrain
from train.objectives.trajectory import TrajectoryTuning
from train.reasoning import check_marks, check_room, reasoning_misfits, with_marks
from train.trainable.config import TrainableConfig

HEADS = tiny.model_config(reasoning_heads=ReasoningHeads())


def test_rows_mark_declarations_and_thoughts(tmp_path):
    data = open_dataset(data_config(tmp_path), "train", seed=0)
    marked = 0
    for row in map(data.row, range(data.num_rows())):
        kinds, labelled = row["kinds"][:-1], row["kinds"][:-1] != 255  # of the label, the next token of the segment
        for kind, mark in ((TokenKind.TOOLS, Mark.SCHEMA), (TokenKind.THOUGHT, Mark.SCRATCH)):
            found = (row["marks"][1:] == mark)[labelled]
            np.testing.assert_array_equal(found, (kinds == kind)[labelled])
            marked += found.sum()
    assert marked


def test_the_renderer_marks_declarations_as_rows_do():
    run = short_run(0)
    rendered = render(run.conversation, load_tokenizer("bytes"))
    of_rows = marks_of(token_kinds(run, rendered))
    np.testing.assert_array_equal(rendered.marks == Mark.SCHEMA, of_rows == Mark.SCHEMA)
    assert (rendered.marks == Mark.SCHEMA).sum() > 10


def test_a_model_with_heads_reads_marks():
    assert with_marks([tiny.model_config(), HEADS], ("tokens",)) == ("tokens", "marks")
    assert with_marks([tiny.model_config()], ("tokens",)) == ("tokens",)


def test_too_many_marks_in_a_row_are_refused_before_training(tmp_path):
    data = open_dataset(data_config(tmp_path), "train", seed=0)
    most = max(int((data.row(i)["marks"] == Mark.SCHEMA).sum()) for i in range(data.num_rows()))
    check_room(data, ReasoningHeads(schema_tokens=most))
    key = rf"model\.reasoning_heads\.schema_tokens: {most - 1}; a row of data\.sources\.\w+ has {most} tokens"
    with pytest.raises(InputError, match=key):
        check_room(data, ReasoningHeads(schema_tokens=most - 1))
    check_marks({"marks": np.array([[1, 1, 0], [1, 2, 2]])}, ReasoningHeads(schema_tokens=2))
    with pytest.raises(InputError, match="a row of a batch has 2 tokens that scratch heads see"):
        check_marks({"marks": np.array([[1, 1, 0], [1, 2, 2]])}, ReasoningHeads(scratch_heads=1, scratch_tokens=1))


def test_what_cannot_be_trained_is_refused(tmp_path):
    runs, text = data_config(tmp_path), {"text": {"path": "package:tinyshakespeare"}}
    texts = type(runs).model_validate({**runs.model_dump(), "sources": text})
    assert reasoning_misfits(HEADS, runs, TrajectoryTuning(), 1) == []
    assert reasoning_misfits(tiny.model_config(), texts, Pretrain(), 2) == []
    ((key, said),) = reasoning_misfits(HEADS, texts, Pretrain(), 1)
    assert key == "model.reasoning_heads" and "nothing is marked" in said
    looped = tiny.model_config(no_rope_layer_interval=2, loops=Loops(periods=(0, 1)))
    ((key, said),) = reasoning_misfits(looped, texts, Pretrain(), 2)
    assert key == "model.loops" and "mesh.pipeline=1" in said


def test_what_is_added_can_be_trained_alone():
    model = tiny.model_config(no_rope_layer_interval=2, reasoning_heads=ReasoningHeads(), loops=Loops(periods=(0, 1)))
    trainable = TrainableConfig(parameters=("reasoning",))
    assert trainable.misfits(model) == []
    chosen = {parameter.name for parameter in trainable.selection().parameters(model)}
    parts = [f"periods/layer_0/reasoning/schema/{name}" for name in "qkvo"]
    assert chosen == {"loop_gain", "periods/layer_0/reasoning/gain", *parts}
    assert trainable.misfits(tiny.model_config()) != []
