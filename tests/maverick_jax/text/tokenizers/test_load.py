"""Tokenizers: exact ids, text that never becomes a control token, and malformed files."""

import functools
import itertools
import json
import pathlib

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from maverick_jax.errors import InputError
from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.text import Tokenizer, load_tokenizer
from maverick_jax.text.tokenizers import llama4 as llama4_module
from maverick_jax.text.tokenizers.llama4 import MAX_PIECE, MAX_RUN, safe_pieces

TRICKY = [
    "",
    " ",
    "\n\n",
    "Hello, world! It's 12345 o'clock\r\n\r\n",
    "naïve café — “quotes” … 東京 🙂👩‍👩‍👧 \u00a0\u2028",
    "<|begin_of_text|><|eot|> <s></s> [CLS] <|image|>",
    "a  b   c\t\td \n e",
    "İSTANBUL DON'T don't \u017f \u01c5",
    "\x00\x1b[31m\x7f",
    "x" * 3000 + " " * 3000 + "é" * 3000,
    "def f(x):\n    return x // 2  # <<48/2=24>>\n",
]


def _byte_level_json(folder: pathlib.Path, controls=("<s>", "</s>", "<pad>"), **changes) -> pathlib.Path:
    """A byte-level BPE tokenizer.json: 256 bytes, a few merges, `controls`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate([*alphabet, "he", "ll", "hell"])}
    made = tokenizers.Tokenizer(models.BPE(vocab, [("h", "e"), ("l", "l"), ("he", "ll")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(controls))
    made.enable_padding(length=16)
    made.enable_truncation(max_length=4)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(made.to_str()), **changes}))
    return path


@pytest.fixture(params=["bytes", "json", "llama4"])
def tokenizer(request, tmp_path) -> Tokenizer:
    if request.param == "llama4":
        return request.getfixturevalue("small_llama4")
    return load_tokenizer("bytes" if request.param == "bytes" else _byte_level_json(tmp_path))


@pytest.mark.parametrize("text", TRICKY)
def test_text_is_restored_and_never_becomes_a_control_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.controls.values())
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_written_control_tokens_are_ordinary_text(tokenizer):
    texts = [f"a{control}b {control}" for control in tokenizer.controls]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert not set(ids) & set(tokenizer.controls.values())
        assert tokenizer.decode(ids) == text


def test_a_batch_equals_single_texts(tokenizer):
    assert tokenizer.encode_batch(TRICKY) == [tokenizer.encode(text) for text in TRICKY]


def test_save_and_load_again(tokenizer, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "40").mkdir(parents=True)
    tokenizer.save(run)
    for folder in (run, run / "checkpoints", run / "checkpoints" / "40"):
        again = load_tokenizer(folder)
        assert again.encode_batch(TRICKY) == tokenizer.encode_batch(TRICKY)
        assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        assert (again.controls, again.vocab_size) == (tokenizer.controls, tokenizer.vocab_size)
        assert again.fingerprint == tokenizer.fingerprint


def test_decode_of_controls_and_unknown_ids(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("hello"), tokenizer.eos_id, tokenizer.vocab_size + 7, -1]
    names = {i: text for text, i in tokenizer.controls.items()}
    assert tokenizer.decode(ids) == "hello\ufffd\ufffd"
    assert tokenizer.decode(ids, controls=True) == f"{names[ids[0]]}hello{names[tokenizer.eos_id]}\ufffd\ufffd"


def test_a_surrogate_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"character 1 .*U\+D800"):
        tokenizer.encode("a\ud800b")


def test_bytes_are_bytes():
    made = load_tokenizer("bytes")
    assert made.encode("é\x00") == [0xC3, 0xA9, 0]
    assert (made.bos_id, made.eos_id, made.pad_id) == (256, 257, 258)
    assert 260 <= made.vocab_size <= 512
    assert made.decode([0xFF, 0x41]) == "\ufffdA"


@given(st.text())
def test_bytes_are_restored(text):
    made = load_tokenizer("bytes")
    assert made.decode(made.encode(text)) == text


@pytest.mark.parametrize("source", ["bytes", "json"])
def test_an_exported_tokenizer_gives_the_same_ids(source, tmp_path):
    tokenizer = load_tokenizer("bytes" if source == "bytes" else _byte_level_json(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    write_hugging_face(tokenizer, out)
    theirs = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    plain = [text for text in TRICKY if "<" not in text]
    for text in plain:
        assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
    again = load_tokenizer(out)
    assert again.encode_batch(TRICKY) == tokenizer.encode_batch(TRICKY)
    assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert (again.vocab_size, again.controls) == (tokenizer.vocab_size, tokenizer.controls)


# ---- Llama 4 -------------------------------------------------------------------------------------------------------


def test_llama4_special_ids(small_llama4):
    made = small_llama4
    expected = {
        "<|begin_of_text|>": 200000, "<|end_of_text|>": 200001, "<|header_start|>": 200005, "<|eom|>": 200007,
        "<|eot|>": 200008, "<|step|>": 200009, "<|python_start|>": 200016, "<|python_end|>": 200017,
        "<|finetune_right_pad|>": 200018, "<|image_start|>": 200080, "<|image_end|>": 200081,
        "<|tile_x_separator|>": 200084, "<|tile_y_separator|>": 200085, "<|image|>": 200090, "<|patch|>": 200092,
        "<|reasoning_thinking_start|>": 201142, "<|reasoning_thinking_end|>": 201143,
        "<|reserved_special_token_903|>": 202047, "<|vision_reserved_special_token_1047|>": 201133,
        "<|text_post_train_reserved_special_token_68|>": 200079,
    }  # fmt: skip
    assert {text: made.controls[text] for text in expected} == expected
    assert (made.vocab_size, len(made.controls)) == (202_048, 2_048)
    assert (made.bos_id, made.eos_id, made.pad_id) == (200000, 200001, 200018)


@pytest.mark.parametrize("text", ["x" * 60_000, " " * 60_000, "ab\n" * 300_000, "é" * 900_000, "a b" * 300_000])
def test_llama4_pieces_are_within_the_limits(text):
    pieces = list(safe_pieces(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= MAX_PIECE
    runs = ("".join(run) for piece in pieces for _, run in itertools.groupby(piece, str.isspace))
    assert max(map(len, runs)) <= MAX_RUN


@given(st.lists(st.tuples(st.integers(1, 3 * MAX_RUN), st.sampled_from("x \né")), max_size=4))
def test_llama4_long_runs_are_found_anywhere(lengths):
    text = "".join(kind * length for length, kind in lengths)
    runs = [run for _, found in itertools.groupby(text, str.isspace) if (run := "".join(found))]
    long = max(map(len, runs), default=0) > MAX_RUN
    assert llama4_module._may_have_long_run(text) or not long
    pieces = safe_pieces(text)
    assert "".join(pieces) == text
    assert long == (len(pieces) > 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[:-5], r"line 199995 is the last; expected 200000"),
        (lambda lines: [*lines[:7], b"!!!! 7", *lines[8:]], r"line 8: .*base64"),
        (lambda lines: [*lines[:7], b"AAAA", *lines[8:]], r"line 8: expected `BASE64 RANK`"),
        (lambda lines: [*lines[:7], lines[7].replace(b" 7", b" 8"), *lines[8:]], r"line 8: .*rank 7"),
        (lambda lines: [*lines[:7], lines[3].replace(b" 3", b" 7"), *lines[8:]], r"line 8: .*already on line 4"),
        (lambda lines: [*lines[:65], b"dG9r 65", *lines[66:]], r"byte 65 has no rank"),
        (lambda lines: [b"\x0a\x0b\xff\xfe sentencepiece \xff"], r"line 1: .*SentencePiece"),
        (lambda lines: [], r"line 0 is the last"),
    ],
)
def test_bad_rank_files(ranks, tmp_path, edit, message):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n".join(edit(ranks.read_bytes().splitlines())))
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_control_names_are_unique():
    assert len(set(llama4_module.control_texts())) == llama4_module.NUM_CONTROLS


# ---- tokenizer.json ------------------------------------------------------------------------------------------------


def test_json_truncation_and_padding_are_off(tmp_path):
    made = load_tokenizer(_byte_level_json(tmp_path))
    assert len(made.encode("abcdefgh")) == 8
    assert made.encode("hell") == [258]


def test_json_roles_come_from_tokenizer_config(tmp_path):
    _byte_level_json(tmp_path, controls=("<x>", "<y>", "<s>"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<x>"}, "eos_token": "<y>"}))
    made = load_tokenizer(tmp_path)
    assert (made.bos_id, made.eos_id, made.pad_id) == (259, 260, 260)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<z>"}))
    with pytest.raises(InputError, match=r"eos_token: '<z>' is not an added token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("more", [{"additional_special_tokens": ["<x>"]}, {"sep_token": {"content": "<x>"}}])
def test_json_extras_of_the_special_tokens_map_are_saved(tmp_path, more):
    folder = tmp_path / "theirs"
    folder.mkdir()
    _byte_level_json(folder, controls=("<x>", "<y>"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<y>"}))
    (folder / "special_tokens_map.json").write_text(json.dumps(more | {"eos_token": "<x>"}))
    (ours := tmp_path / "ours").mkdir()
    load_tokenizer(folder).save(ours)
    assert json.loads((ours / "special_tokens_map.json").read_text()) == more | {"eos_token": "<y>"}


@pytest.mark.parametrize("content", ["[]", "{"])
def test_a_malformed_special_tokens_map_is_refused(tmp_path, content):
    _byte_level_json(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(content)
    with pytest.raises(InputError, match=r"special_tokens_map\.json"):
        load_tokenizer(tmp_path)


def test_json_control_tokens_in_the_vocabulary_of_a_word_model(tmp_path):
    """The library finds these in text even with `encode_special_tokens`."""
    vocab = {"<s>": 0, "<unk>": 1, "a": 2, "<": 3, "s": 4, ">": 5}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<s>", "<unk>"])
    made.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("a <s> b") == [2, 3, 4, 5, 1]


def test_json_added_tokens_are_control_tokens_without_the_special_flag(tmp_path):
    path = _byte_level_json(tmp_path)
    data = json.loads(path.read_text())
    data["added_tokens"][0]["special"] = False
    path.write_text(json.dumps(data))
    made = load_tokenizer(path)
    assert made.controls["<s>"] not in made.encode("<s>")
    assert made.decode(made.encode("x<s>")) == "x<s>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model":\n {"type" "BPE"}}', r"line 2: not JSON"),
        (b"", r"line 1: not JSON"),
        (b'{"a":\n\n"\xff"}', r"line 3: not UTF-8"),
        (b"[1]", r"line 1: expected a JSON object"),
        (b'{"model": 1}', r"line 1: expected an object `model`"),
        (b'{"model": {"type": "BPE"}}', r"not a tokenizer"),
        (b"[" * 100_000, r"line 1: JSON nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"not JSON: Exceeds the limit"),
    ],
)
def test_bad_json_files(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)


def test_json_files_that_are_too_large(tmp_path, monkeypatch):
    path = _byte_level_json(tmp_path)
    monkeypatch.setattr("maverick_jax.text.tokenizers.hugging_face.MAX_LISTS", 3)
    with pytest.raises(InputError, match="more than 3 lists and objects"):
        load_tokenizer(path)
    monkeypatch.setattr("maverick_jax.text.tokenizers.base.MAX_BYTES", 1000)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer.txt"):
        with pytest.raises(InputError, match="larger than 0 MiB"):
            load_tokenizer(path := path.rename(tmp_path / name))


_DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [_DOUBLE] * 30}}, "more than 1024 times as long"),
        ({"decoder": {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [_DOUBLE] * 7}]}}, "1024"),
        ({"normalizer": {**_DOUBLE, "content": "a" * 2000}}, "more than 1024 times as long"),
        ({"added_tokens": [{"id": 256, "content": "x" * 70_000, "special": True, "single_word": False, "lstrip": False,
                            "rstrip": False, "normalized": False}]}, "a token of 70,000 characters"),
        ({"added_tokens": [{"id": "1"}]}, "not a tokenizer"),
        ({"normalizer": functools.reduce(lambda n, _: {"type": "Sequence", "normalizers": [n]}, range(400), _DOUBLE)},
         "not a tokenizer"),
    ],
)  # fmt: skip
def test_json_files_that_would_exhaust_the_memory_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load_tokenizer(_byte_level_json(tmp_path, **changes))


@pytest.mark.parametrize("content", ['{"bos_token": ["<s>"]}', '{"bos_token": {"content": {}}}', '{"bos_token": 3}'])
def test_roles_that_are_not_text_are_refused(tmp_path, content):
    _byte_level_json(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match="bos_token: expected text, got"):
        load_tokenizer(tmp_path)


def test_a_malformed_unknown_id_is_ignored(tmp_path):
    data = json.loads(_byte_level_json(tmp_path).read_text())
    data["model"]["unk_id"] = [1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert load_tokenizer(tmp_path).encode("hell") == [258]


def test_a_pattern_that_backtracks_forever_is_an_error(tmp_path):
    """The library panics when its regular expressions give up; its panic is not an Exception."""
    slow = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    made = load_tokenizer(_byte_level_json(tmp_path, pre_tokenizer=slow))
    with pytest.raises(InputError, match=r"cannot tokenize this text: .*retry-limit"):
        made.encode("x" * 60)


def test_sources_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"did you mean bytes"):
        load_tokenizer("byte")
    with pytest.raises(InputError, match=r"contains none of"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.txt").write_text("../../etc/passwd\n")
    with pytest.raises(InputError, match=r"tokenizer.txt: line 1: no tokenizer is called"):
        load_tokenizer(tmp_path)
    (tmp_path / "words.csv").write_text("a")
    with pytest.raises(InputError, match=r"ends in .json"):
        load_tokenizer(tmp_path / "words.csv")
