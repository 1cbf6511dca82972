"""What a public folder says and we do not compute with comes back from an export, also after an import or a run."""

import json
import logging
import types

import numpy as np
import pytest

from maverick_jax.errors import InputError
from maverick_jax.huggingface.export import CHUNKS_PER_CONTEXT
from maverick_jax.pretrained import export, import_checkpoint, load_pretrained, save_pretrained
from maverick_jax.target import Target
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat.template import chat_template
from tests.helpers.folders import read_json, store_run
from tests.parity.oracle import MULTIMODAL, our_model, random_parameters, shapes, variant
from train.config_files import read_config
from train.run_folder import describe

TEXT = variant(vocab_size=288, num_hidden_layers=4)
IMAGES = MULTIMODAL["maverick_with_images"].model_copy(update={"vocab_size": 288})
SAID = {"max_position_embeddings": 1048576, "use_cache": False, "initializer_range": 0.01,
        "router_aux_loss_coef": 0.002, "for_llm_compression": False, "new": {"a": [1, {"b": None}]}}  # fmt: skip
GENERATION = {"temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.1, "stop_strings": ["a"], "do_sample": True}
TOKENIZER = {"model_max_length": 1048576, "padding_side": "left", "additional_special_tokens": ["<|eom|>"]}
FOREIGN = "{{ messages[0]['content'] }}"


def rewrite(path, **changes):
    path.write_text(json.dumps((read_json(path) if path.exists() else {}) | changes))


def write_folder(path, config):
    """A folder that says more than what we compute with."""
    model = our_model(config, random_parameters(shapes(config)))
    save_pretrained(model, path, "float32", load_tokenizer("bytes"))
    given = read_json(path / "config.json")
    if config.vision is None:
        given |= SAID
    else:
        given["text_config"] |= SAID
        given["vision_config"]["initializer_range"] = 0.03
        given["boi_extra"] = 5
        rewrite(path / "preprocessor_config.json", max_patches=4)
    (path / "config.json").write_text(json.dumps(given))
    rewrite(path / "generation_config.json", **GENERATION)
    rewrite(path / "tokenizer_config.json", **TOKENIZER)
    (path / "chat_template.jinja").write_text(FOREIGN)
    return path


@pytest.fixture(scope="module", params=["text", "images"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("carried") / request.param
    return write_folder(path, TEXT if request.param == "text" else IMAGES)


def tuned(folder, run_dir):
    """The directory of a run from `folder`, as training writes it, with a checkpoint of the same model."""
    words = [f"model={{init_from: {folder}}}", f"run.dir={run_dir}"]
    config = read_config("trajectory_tiny", [*words, "data.tokenizer=null"])
    dataset = types.SimpleNamespace(fingerprint="data", tokenizer=load_tokenizer(config.data.tokenizer))
    feed, mesh = types.SimpleNamespace(train=dataset), types.SimpleNamespace(shape={"data": 1})
    session = types.SimpleNamespace(config=config, feed=feed, mesh=mesh, target=Target.local(), references={})
    describe(session, 0, 1.0)
    network = config.model.network
    store_run(run_dir, network, random_parameters(shapes(network)), np.float32)
    return run_dir


def through(folder, tmp_path, way):
    """The folder that comes out."""
    source = folder
    if way == "import":
        import_checkpoint(folder, tmp_path / "imported")
        source = tmp_path / "imported"
    elif way == "run":
        source = tuned(folder, tmp_path / "run")
    elif way == "run of a run":
        source = tuned(tuned(folder, tmp_path / "first"), tmp_path / "second") / "checkpoints" / "7"
    if way == "live":
        model = load_pretrained(folder)
        save_pretrained(model, tmp_path / "out", "float32", load_tokenizer(folder), source=folder)
    else:
        export(source, tmp_path / "out", "float32")
    return tmp_path / "out"


@pytest.mark.parametrize("way", ["folder", "import", "run", "run of a run", "live"])
def test_what_a_folder_says_comes_back(folder, tmp_path, way):
    out = through(folder, tmp_path, way)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        if name.endswith(".json"):
            assert read_json(out / name) == read_json(folder / name), name
        else:
            assert (out / name).read_bytes() == (folder / name).read_bytes()
    if (folder / "preprocessor_config.json").exists():
        assert read_json(out / "preprocessor_config.json") == read_json(folder / "preprocessor_config.json")
    assert load_tokenizer(out).fingerprint == load_tokenizer(folder).fingerprint


def test_a_model_of_ours_gets_a_derived_context(tmp_path):
    save_pretrained(our_model(TEXT, random_parameters(shapes(TEXT))), tmp_path / "out")
    found = read_json(tmp_path / "out" / "config.json")["max_position_embeddings"]
    assert found == CHUNKS_PER_CONTEXT * TEXT.attention_chunk_size


def test_the_text_model_alone_keeps_what_its_part_says(tmp_path):
    folder = write_folder(tmp_path / "in", IMAGES)
    export(folder, tmp_path / "out", text_only=True)
    found = read_json(tmp_path / "out" / "config.json")
    assert SAID.items() <= found.items() and "boi_extra" not in found and "vision_config" not in found


def test_a_dialect_replaces_the_template_and_keeps_the_sampling(tmp_path):
    folder = write_folder(tmp_path / "in", TEXT)
    rewrite(folder / "tokenizer_config.json", chat_template=FOREIGN)
    export(folder, tmp_path / "out", dialect="meta_json")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == chat_template("meta_json")
    assert "chat_template" not in read_json(tmp_path / "out" / "tokenizer_config.json")
    generation = read_json(tmp_path / "out" / "generation_config.json")
    assert GENERATION.items() <= generation.items() and generation["eos_token_id"] == [257, 261, 262]


def test_token_ids_of_config_json_stand_in_for_a_missing_generation_config(tmp_path):
    folder = write_folder(tmp_path / "in", TEXT)
    (folder / "generation_config.json").unlink()
    rewrite(folder / "config.json", eos_token_id=[257, 262])
    export(folder, tmp_path / "out")
    assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [257, 262]
    assert read_json(tmp_path / "out" / "config.json")["eos_token_id"] == [257, 262]


def test_code_and_what_is_of_the_files_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = write_folder(tmp_path / "in", TEXT)
    auto_map = {"AutoModelForCausalLM": "modeling.py"}
    rewrite(folder / "config.json", auto_map=auto_map, transformers_version="4.51", _name_or_path="x")
    rewrite(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Custom")
    export(folder, tmp_path / "out")
    found = read_json(tmp_path / "out" / "config.json") | read_json(tmp_path / "out" / "tokenizer_config.json")
    assert not {"auto_map", "transformers_version", "_name_or_path"} & found.keys()
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map is left out" in caplog.text


@pytest.mark.parametrize("value", [0, -1, True, "1048576", 1.5, 2**60])
def test_a_context_that_is_no_number_of_tokens_is_refused(tmp_path, value):
    folder = write_folder(tmp_path / "in", TEXT)
    rewrite(folder / "config.json", max_position_embeddings=value)
    with pytest.raises(InputError, match=r"max_position_embeddings: expected a number of tokens"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_malformed_file_stops_an_import(tmp_path):
    folder = write_folder(tmp_path / "in", TEXT)
    (folder / "processor_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"processor_config.json: expected a JSON object"):
        import_checkpoint(folder, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(("dtype", "said"), [("bfloat16", True), ("float32", False)])
def test_rounding_to_bfloat16_is_said(tmp_path, caplog, dtype, said):
    caplog.set_level(logging.INFO)
    save_pretrained(our_model(TEXT, random_parameters(shapes(TEXT))), tmp_path / "out", dtype=dtype)
    assert ("float32 parameters, rounded to bfloat16" in caplog.text) == said
    if said:  # nothing is rounded a second time
        caplog.clear()
        export(tmp_path / "out", tmp_path / "again")
        assert "rounded" not in caplog.text


@pytest.mark.oracles
def test_transformers_reads_what_comes_back(tmp_path):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    folder = write_folder(tmp_path / "in", TEXT)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "do_sample": True}))
    export(folder, tmp_path / "out", "float32")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.max_position_embeddings, config.router_aux_loss_coef) == (1048576, 0.002)
    assert GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.7
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == 1048576 and tokenizer.padding_side == "left"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"
