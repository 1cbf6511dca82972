"""Tokenizers are compared by what their ids mean."""

import json

from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.text import load_tokenizer, same_tokens


def test_a_tokenizer_has_the_tokens_of_its_tokenizer_json(tmp_path):
    ours = load_tokenizer("bytes")
    write_hugging_face(ours, tmp_path)
    theirs = load_tokenizer(tmp_path)
    assert theirs.fingerprint != ours.fingerprint
    assert same_tokens(ours, theirs) and same_tokens(theirs, ours) and same_tokens(ours, ours)


def test_another_end_token_leaves_the_tokens_the_same(tmp_path):
    for name, dialect in (("base", None), ("instruct", "meta_pythonic")):
        (tmp_path / name).mkdir()
        write_hugging_face(load_tokenizer("bytes"), tmp_path / name, dialect)
    base, instruct = load_tokenizer(tmp_path / "base"), load_tokenizer(tmp_path / "instruct")
    assert base.eos_id != instruct.eos_id and same_tokens(base, instruct)


def test_a_tokenizer_of_the_same_size_with_other_tokens_differs(tmp_path):
    write_hugging_face(load_tokenizer("bytes"), tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert not same_tokens(load_tokenizer("bytes"), load_tokenizer(tmp_path))


def test_other_control_tokens_and_another_size_differ(tmp_path, small_llama4):
    assert not same_tokens(load_tokenizer("bytes"), small_llama4)
    write_hugging_face(load_tokenizer("bytes"), tmp_path)
    content = (tmp_path / "tokenizer.json").read_text().replace("<|eom|>", "<|other|>")
    (tmp_path / "tokenizer.json").write_text(content)
    assert not same_tokens(load_tokenizer("bytes"), load_tokenizer(tmp_path))
