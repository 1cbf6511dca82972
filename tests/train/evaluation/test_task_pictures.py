"""Pictures of examples stand before the question, and their tiles reach the engine."""

import json

import numpy as np
import pytest
from PIL import Image

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.images import ImageConfig, cut_tiles
from maverick_jax.text import load_tokenizer
from tests.helpers.scripted_engine import ScriptedEngine
from train.evaluation.tasks import open_tasks, run_task

BYTES = load_tokenizer("bytes")
ENCODER = ModelConfig.from_name("tiny_vision").vision
PATCH, STOP = BYTES.controls["<|patch|>"], BYTES.controls["<|eot|>"]


@pytest.fixture
def tasks(tmp_path):
    """Both forms over a wide picture and a small one."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 150, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "wide.png")
    Image.new("RGB", (30, 30), "red").save(tmp_path / "small.png")
    charts = [
        {"imgname": "wide.png", "query": "How high is it?", "label": "40"},
        {"imgname": "small.png", "query": "Which color?", "label": ["red"]},
    ]
    pages = {"data": [{"questionId": 7, "question": "Who?", "image": "small.png", "answers": ["Ada L.", "Ada"]}]}
    (tmp_path / "charts.json").write_text(json.dumps(charts))
    (tmp_path / "pages.json").write_text(json.dumps(pages))
    lines = [
        f"tasks:\n  charts: {{kind: chart_qa, path: {tmp_path}/charts.json, images: {tmp_path}}}",
        f"  pages: {{kind: doc_vqa, path: {tmp_path}/pages.json, images: {tmp_path}}}\n",
    ]
    (tmp_path / "tasks.yaml").write_text("\n".join(lines))
    return tmp_path


def test_both_forms_are_asked_with_their_pictures_and_graded(tasks):
    said = iter(["Answer: 41", "The color is red.\nAnswer: Red.", "Answer: Ado"])
    seen = []

    def write(request):
        seen.append(request)
        return [*BYTES.encode(next(said)), STOP]

    opened = open_tasks([str(tasks / "tasks.yaml")], BYTES, encoder=ENCODER)
    charts, pages = (run_task(task, ScriptedEngine(BYTES, write), BYTES) for task in opened)
    assert charts["score"]["value"] == 1 and charts["parts"]["exact"]["value"] == 0.5
    assert pages["score"]["value"] == pytest.approx(2 / 3) and pages["n"] == 1
    for request, name in zip(seen, ("wide", "small", "small"), strict=True):
        tiles, _ = cut_tiles(Image.open(tasks / f"{name}.png").convert("RGB"), ImageConfig.of(ENCODER))
        np.testing.assert_array_equal(request.tiles, tiles)
        assert list(request.prompt).count(PATCH) == len(tiles) * ENCODER.tokens_per_tile
        text = BYTES.decode(request.prompt[list(request.prompt).index(PATCH) :], controls=True)
        assert "?" in text and list(request.prompt).count(BYTES.bos_id) == 1
    assert len(seen[0].tiles) > len(seen[1].tiles) == 1


@pytest.mark.parametrize(
    ("content", "encoder", "said"),
    [
        (None, None, "task charts: its examples show pictures; expected a model with an image encoder"),
        (b"not a picture", ENCODER, "task charts: example 0: .*wide.png"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_a_model_runs(tasks, content, encoder, said):
    if content:
        (tasks / "wide.png").write_bytes(content)
    with pytest.raises(InputError, match=said):
        open_tasks([str(tasks / "tasks.yaml")], BYTES, encoder=encoder)
