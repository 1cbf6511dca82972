"""The tokenizer and the vocabulary come from the model that a run starts from, or learns from."""

import dataclasses
import json
import logging
import shutil

import pytest

from data.commands import inspect, stats
from launch.plan import plan
from maverick_jax.errors import InputError
from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.pretrained import import_checkpoint, save_pretrained
from maverick_jax.text import load_tokenizer, same_tokens
from tests.parity.oracle import MULTIMODAL, our_model, random_parameters, shapes, variant
from train.config_files import read_config, resolved
from train.evaluate import evaluate

MODEL = variant(vocab_size=288, num_hidden_layers=2)
CONFIG = """
run: {name: tuned, steps: 2, eval_batches: 1}
model: {MODEL}
data:
  sources: {tinyshakespeare: {path: "package:tinyshakespeare"}}
  batch_size: 8
  sequence_length: 16
"""


def write_folder(path, config=MODEL, tokenizer=True):
    """A Hugging Face folder; its tokenizer has the size of `bytes`, and other tokens."""
    save_pretrained(our_model(config, random_parameters(shapes(config))), path, dtype="float32")
    if tokenizer:
        write_hugging_face(load_tokenizer("bytes"), path)
        content = json.loads((path / "tokenizer.json").read_text())
        vocab = content["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        (path / "tokenizer.json").write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders `text`, `images`, `bare` (without a tokenizer) and `imported` (a run of `text`)."""
    root = tmp_path_factory.mktemp("inherited")
    images = MULTIMODAL["maverick_with_images"].model_copy(update={"vocab_size": 288})
    write_folder(root / "text")
    write_folder(root / "images", images)
    write_folder(root / "bare", tokenizer=False)
    import_checkpoint(root / "text", root / "imported")
    return root


def read(place, tmp_path, *words, model="{init_from: text}", **how):
    model = model.replace("init_from: ", f"init_from: {place}/")
    (tmp_path / "run.yaml").write_text(CONFIG.replace("{MODEL}", model))
    return read_config(str(tmp_path / "run.yaml"), [f"data.cache_dir={place}/cache", *words], **how)


@pytest.mark.parametrize("name", ["text", "images", "imported", "imported/checkpoints/0"])
def test_the_tokenizer_of_the_model_is_the_default_and_is_recorded(place, tmp_path, caplog, name):
    caplog.set_level(logging.INFO)
    config = read(place, tmp_path, model=f"{{init_from: {name}}}")
    assert resolved(config)["data"]["tokenizer"] == f"{place}/{name}"
    assert same_tokens(load_tokenizer(config.data.tokenizer), load_tokenizer(place / "text"))
    assert f"data.tokenizer: {place}/{name}, the tokenizer of {place}/{name} (model.init_from)" in caplog.text


def test_null_takes_the_tokenizer_of_the_model_too(place, tmp_path):
    assert read(place, tmp_path, "data.tokenizer=null").data.tokenizer == f"{place}/text"
    assert read_config("pretrain_tiny", ["data.tokenizer=null"]).data.tokenizer == "bytes"


def test_a_run_of_bytes_gives_bytes(place, tmp_path):
    shutil.copytree(place / "imported", tmp_path / "run")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "run" / name).unlink()
    load_tokenizer("bytes").save(tmp_path / "run")
    config = read(place, tmp_path, f"model.init_from={tmp_path / 'run'}")
    assert config.data.tokenizer == "bytes"


def test_another_tokenizer_is_refused_unless_it_is_said_twice(place, tmp_path):
    with pytest.raises(InputError) as said:
        read(place, tmp_path, "data.tokenizer=bytes")
    assert "command line: data.tokenizer: bytes (271 ids) is not the tokenizer of" in str(said.value)
    assert "model.init_other_tokenizer: true accepts" in str(said.value)
    config = read(place, tmp_path, "data.tokenizer=bytes", "model.init_other_tokenizer=true")
    assert config.data.tokenizer == "bytes"
    with pytest.raises(InputError, match=r"data.tokenizer: required, because model.init_other_tokenizer says"):
        read(place, tmp_path, "model.init_other_tokenizer=true")
    with pytest.raises(InputError, match=r"model.init_other_tokenizer: .* model.init_from, which is not given"):
        read_config("pretrain_tiny", ["model.init_other_tokenizer=true"])


def test_a_model_that_moves_has_a_row_for_each_token_of_the_new_tokenizer(place, tmp_path):
    words = ["data.tokenizer=bytes", "model.init_vocabulary=true"]
    config = read(place, tmp_path, *words)
    assert config.model.vocab_size == 271
    assert config.start is not None and config.start.tokenizer == "bytes"
    assert read(place, tmp_path, *words, "model.vocab_size=300").model.vocab_size == 300
    assert read(place, tmp_path).start == dataclasses.replace(config.start, tokenizer=None)


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("text", [], r"data\.tokenizer: required, because model\.init_vocabulary says"),
        ("text", ["data.tokenizer=nowhere.json"], r"data\.tokenizer: tokenizer nowhere\.json: no such file"),
        ("text", ["data.tokenizer=bytes", "model.init_other_tokenizer=true"], r"init_vocabulary: .* one of the two"),
        ("bare", ["data.tokenizer=bytes"], r"model\.init_vocabulary: .*bare has no tokenizer, .*; expected a folder"),
        ("images", ["data.tokenizer=bytes"], r"model\.init_vocabulary: .*images has an image encoder, .* text model"),
    ],
)
def test_vocabularies_that_cannot_move_are_refused_in_one_line(place, tmp_path, model, words, said):
    with pytest.raises(InputError, match=said) as error:
        read(place, tmp_path, *words, "model.init_vocabulary=true", model=f"{{init_from: {model}}}")
    assert len(str(error.value).splitlines()) == 1


def test_the_same_tokens_from_another_file_are_accepted(place, tmp_path):
    shutil.copy(place / "text" / "tokenizer.json", tmp_path / "copy.json")
    assert read(place, tmp_path, f"data.tokenizer={tmp_path}/copy.json").data.tokenizer == f"{tmp_path}/copy.json"


def test_a_folder_without_a_tokenizer_requires_one(place, tmp_path, caplog):
    bare = "{init_from: bare}"
    with pytest.raises(InputError, match=r"data.tokenizer: required, because .*bare \(model.init_from\) has no tok"):
        read(place, tmp_path, model=bare)
    assert read(place, tmp_path, "data.tokenizer=bytes", model=bare).data.tokenizer == "bytes"
    assert "bare has no tokenizer; cannot verify" in caplog.text


def test_a_tokenizer_that_cannot_be_read_is_named(place, tmp_path):
    with pytest.raises(InputError, match=r"data.tokenizer: tokenizer nowhere.json: no such file"):
        read(place, tmp_path, "data.tokenizer=nowhere.json")


def test_plan_and_data_use_it(place, tmp_path):
    config = read(place, tmp_path)
    assert plan(config)["run"] == "tuned"
    assert stats(config.data, 0)["tokenizer"]["name"] == f"{place}/text/tokenizer.json"
    row = inspect(config.data, 0, count=1)["rows"][0]
    assert row["tokens"] == 16


def test_eval_takes_the_tokenizer_of_the_checkpoint_and_refuses_another(place, tmp_path):
    model = MODEL.model_dump_json()
    (tmp_path / "run.yaml").write_text(CONFIG.replace("{MODEL}", model))
    words = [f"data.cache_dir={place}/cache"]
    assert evaluate(str(place / "text"), str(tmp_path / "run.yaml"), words)["eval_tokens"] > 0
    with pytest.raises(InputError, match=r"bytes \(271 ids\) is not the tokenizer of .*, which CHECKPOINT"):
        evaluate(str(place / "text"), str(tmp_path / "run.yaml"), [*words, "data.tokenizer=bytes"])


# ---- a teacher -------------------------------------------------------------------------------------------------------

OWN = variant(num_hidden_layers=2).model_dump(exclude={"vocab_size"}, mode="json")


@pytest.mark.parametrize("model", ["tiny", json.dumps(OWN)], ids=["shipped", "own"])
@pytest.mark.parametrize("more", ["", ", targets: {path: nowhere}"], ids=["live", "stored"])
def test_vocabulary_and_tokenizer_come_from_the_teacher(place, tmp_path, model, more):
    config = read(place, tmp_path, f"objective={{kind: distill, teacher: {place}/text{more}}}", model=model)
    assert resolved(config)["model"]["vocab_size"] == 288
    assert resolved(config)["data"]["tokenizer"] == f"{place}/text"


def test_what_is_given_beside_a_teacher_stays(place, tmp_path):
    objective = f"objective={{kind: distill, teacher: {place}/text}}"
    config = read(place, tmp_path, objective, "model.vocab_size=512", "data.tokenizer=bytes", model="tiny")
    assert (config.model.vocab_size, config.data.tokenizer) == (512, "bytes")
    assert read(place, tmp_path, objective, model="{init_from: imported}").data.tokenizer == f"{place}/imported"


def test_a_teacher_that_will_be_made_gives_what_its_config_says(place, tmp_path):
    (tmp_path / "teacher.yaml").write_text(
        CONFIG.replace("{MODEL}", MODEL.model_dump_json()).replace("data:", f"data:\n  tokenizer: {place}/text")
    )
    made = f"{{kind: distill, teacher: {tmp_path}/later, teacher_config: {tmp_path}/teacher.yaml}}"
    config = read(place, tmp_path, f"objective={made}", model="tiny")
    assert (config.model.vocab_size, config.data.tokenizer) == (288, f"{place}/text")


def test_a_teacher_that_is_missing_leaves_the_config_as_it_is(place, tmp_path):
    config = read(place, tmp_path, "objective={kind: distill, teacher: nowhere}", model="tiny")
    assert (config.model.vocab_size, config.data.tokenizer) == (512, "bytes")
