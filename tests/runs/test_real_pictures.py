"""Photographs and rendered documents are trained on, shown to the tuned model, exported, and read by transformers."""

import json
import pathlib

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from launch.generate import GenerateOptions, generate
from maverick_jax.images import ImageConfig, batch_tiles, open_image, preprocess
from maverick_jax.inference.prompts import prompt_ids_of
from maverick_jax.inference.sampling import Sampling
from maverick_jax.pretrained import export, load_pretrained
from maverick_jax.text import load_tokenizer
from tests.helpers import small_run
from tests.parity.oracle import torch_logits
from train.run import main

pytestmark = pytest.mark.slow

PHOTOGRAPHS = pathlib.Path(matplotlib.get_data_path()) / "sample_data"
NAMES = "grace_hopper.jpg", "logo2.png", "Minduka_Present_Blue_Pack.png"
LETTER = (
    "Dear Ms. Hopper,",
    "the bug you found in relay 70, panel F,",
    "was a moth. It is taped into the log.",
    "Mark II",
)
WORDS = ["model={base: tiny_vision, num_hidden_layers: 4, hidden_size: 32, num_attention_heads: 4, head_dim: 8, "
         "num_key_value_heads: 2, intermediate_size: 16, intermediate_size_mlp: 32}",
         "data.tiles={tile_size: 56, max_tiles: 4}", "data.batch_size=4", "data.sequence_length=256", "run.steps=6",
         "run.eval_every=0", "data.held_out_fraction=0", "checkpoint.every=3", "logging.every=1",
         "logging.progress=false", "trainable.parameters=[attention, experts, vision, adapter, projector]",
         "optimizer={learning_rate: 1e-3, multipliers: {vision: 0.5}}",
    "mesh={fsdp: 2, expert: 2, tensor: 2, data: 1}"]  # fmt: skip


def render(path: pathlib.Path, lines) -> None:
    """A page with these lines."""
    page = Image.new("RGB", (300, 40 + 24 * len(lines)), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(page).text((20, 20 + 24 * i), line, fill="black")
    page.save(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """The directory of a run on three photographs and four pages."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in NAMES:
        (folder / name).write_bytes((PHOTOGRAPHS / name).read_bytes())
    for number in range(4):
        render(folder / f"page{number}.png", LETTER[: number + 1])
    asked = {name: ("What is this?", name.partition(".")[0]) for name in NAMES}
    asked |= {f"page{n}.png": ("What does the last line say?", LETTER[n]) for n in range(4)}
    chats = [{"image": name, "conversations": [{"from": "human", "value": f"<image>\n{question}"},
                                               {"from": "gpt", "value": answer}]}
             for name, (question, answer) in asked.items()]  # fmt: skip
    (folder / "samples.json").write_text(json.dumps(chats))
    (folder / "run.yaml").write_text(
        "run: {name: real, steps: 1}\nmodel: tiny\ndata: {sources: {x: {path: package:chats}}}\n"
    )
    train(folder, folder / "run")
    return folder / "run"


def train(folder: pathlib.Path, run_dir: pathlib.Path) -> None:
    source = f"data.sources={{real: {{kind: pictures, path: {folder / 'samples.json'}}}}}"
    cache = f"data.cache_dir={folder / 'cache'}"
    main(str(folder / "run.yaml"), [*WORDS, source, cache, "objective=sft", f"run.dir={run_dir}"])


def test_an_interrupted_run_resumes_to_the_bit(run):
    cut = small_run.cut_back(run, run.parent / "cut", 3)
    train(run.parent, cut)
    small_run.assert_same_run(run, cut, 6)


def test_training_sees_them(run):
    lines = [line for line in small_run.lines(run) if "loss" in line]
    assert lines[-1]["step"] == 6 and lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["kind_tokens"]["image"] > 0
    assert lines[-1]["learning_rate_vision"] == pytest.approx(0.5 * lines[-1]["learning_rate"])


def test_the_tuned_model_reads_them_and_others(run):
    def written(*images) -> str:
        wanted = GenerateOptions("What is this?", None, images=images, max_tokens=12, sampling=Sampling(temperature=0))
        return generate(str(run), wanted, None)["text"]

    paths = [str(run.parent / name) for name in (*NAMES, "page3.png")]
    assert written(paths[0]) == written(paths[0])
    model, tokenizer = load_pretrained(run), load_tokenizer(run)
    logits = []
    for path in paths:
        ids, tiles = prompt_ids_of(model.config, tokenizer, "What is this?", [open_image(path)])
        logits.append(np.asarray(model.logits(np.array([ids], np.int32), pixel_values=tiles))[0, -1])
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(logits) for b in logits[:i])


@pytest.mark.oracles
def test_the_exported_model_gives_transformers_logits(run, tmp_path):
    import torch
    from transformers import AutoModelForImageTextToText

    export(run, tmp_path / "folder", dtype="float32")
    theirs = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "folder", dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    ours, tokenizer = load_pretrained(run), load_tokenizer(run)
    images = [open_image(run.parent / name) for name in ("grace_hopper.jpg", "page3.png")]
    ids, tiles = prompt_ids_of(ours.config, tokenizer, "What are these?", images)
    config = ImageConfig.of(ours.config.vision)
    np.testing.assert_array_equal(tiles, batch_tiles([preprocess(image, config) for image in images]))
    tokens = np.array([ids], np.int32)
    expected = torch_logits(theirs, tokens, tiles)
    np.testing.assert_allclose(ours.logits(tokens, pixel_values=tiles), expected, atol=1e-4, rtol=0)
    before = load_pretrained(run / "checkpoints" / "3")
    assert np.abs(np.asarray(before.logits(tokens, pixel_values=tiles)) - expected).max() > 1e-3
