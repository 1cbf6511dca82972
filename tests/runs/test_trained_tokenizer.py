"""A tokenizer that `maverick data tokenizer` trains, in a run, in its export, and in transformers."""

import pathlib
import sysconfig

import numpy as np
import pytest
import tokenizers

from data.config import DataConfig
from data.tokenizer_training import train_tokenizer
from maverick_jax.pretrained import export, load_pretrained, save_pretrained
from maverick_jax.text import load_tokenizer, same_tokens
from tests.helpers import tiny
from tests.helpers.small_run import losses

SHAKESPEARE = {"shakespeare": {"path": "package:tinyshakespeare"}}
CODE = {"code": {"path": sysconfig.get_paths()["stdlib"] + "/*.py", "kind": "text"}}
TEXTS = [
    "First Citizen:\nSpeak, speak.",
    "def naïve(x: int):\r\n\treturn f'{x:>12}'  # 東京 🙂 <|eot|>",
    "   \n\n 1234567",
]


def check_ids(home: pathlib.Path, made: pathlib.Path) -> None:
    """Checks that the export's ids are those of our tokenizer, of the tokenizers library and of transformers."""
    from transformers import AutoTokenizer

    ours, library = load_tokenizer(home), tokenizers.Tokenizer.from_file(str(made / "tokenizer.json"))
    library.encode_special_tokens = True
    theirs = AutoTokenizer.from_pretrained(home)
    assert same_tokens(ours, load_tokenizer(made)) and len(theirs) == ours.vocab_size
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids
        if "<|" not in text:  # transformers reads control tokens that stand in a text
            assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.oracles
def test_an_export_with_it_opens_in_transformers(tmp_path):
    made, home = tmp_path / "tokenizer", tmp_path / "home"
    train_tokenizer(DataConfig.model_validate({"sources": SHAKESPEARE}), made, 4096)
    model = tiny.model_of(tiny.model_config(vocab_size=4096, num_local_experts=0), 0)
    save_pretrained(model, home, dtype="float32", tokenizer=load_tokenizer(made))
    check_ids(home, made)


@pytest.mark.oracles
@pytest.mark.slow
@pytest.mark.parametrize(("entries", "sources"), [(4_096, SHAKESPEARE), (32_000, SHAKESPEARE | CODE)])
def test_a_run_with_it_opens_in_transformers(runs, tmp_path, entries, sources):
    """The model too: its logits are those of transformers."""
    from transformers import AutoModelForCausalLM

    made, run_dir, home = tmp_path / "tokenizer", tmp_path / "run", tmp_path / "home"
    train_tokenizer(DataConfig.model_validate({"sources": sources}), made, entries)
    said = [f"data.tokenizer={made}", f"model.vocab_size={entries}", "run.steps=3", "checkpoint.every=3"]
    runs.train(run_dir, *said, "run.eval_every=0")
    assert np.isfinite(losses(run_dir)).all()
    export(run_dir, home, dtype="float32")
    check_ids(home, made)
    model = AutoModelForCausalLM.from_pretrained(home)
    ids = np.array([load_tokenizer(home).encode(TEXTS[0])], np.int32)
    found = model(input_ids=model.dummy_inputs["input_ids"].new_tensor(ids.tolist())).logits.detach().numpy()
    np.testing.assert_allclose(load_pretrained(home).logits(ids), found, atol=1e-4)
