"""Compares the ids of our Llama 4 tokenizer with tiktoken's, and with those of our export in `tokenizers` and
transformers."""

import base64
import itertools
import pathlib
import sys
import unicodedata

import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from maverick_jax.text import Tokenizer, load_tokenizer
from maverick_jax.text.tokenizers.llama4 import safe_pieces

ROOT = pathlib.Path(__file__).resolve().parents[2]


def every_character(_) -> list[str]:
    """All assigned characters of all scripts, forty per text, with and without white space between them."""
    kept = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    groups = ["".join(kept[i : i + 40]) for i in range(0, len(kept), 40)]
    return groups + [" ".join(group[:20]) for group in groups]


def white_space(_) -> list[str]:
    kinds = [" ", "\t", "\n", "\r", "\r\n", "\u00a0", "\u2003", "\u2028", "\u3000", "\x0b", "\x85"]
    runs = ["".join(run) for length in (1, 2, 3) for run in itertools.product(kinds, repeat=length)]
    return [*runs, *(f"a{run}b{run}1{run}." for run in runs), *(kind * 100 for kind in kinds)]


def words(_) -> list[str]:
    said = ["I'll", "WE'RE", "don'T", "it's", "'sup", "o'clock's", "İ'm", "\u017f's", "\u01c5x", "e\u0301'd", "x'LLy"]
    numbers = ["1", "12", "123", "1234", "12345678901", "3.14e-10", "0xFF", "\u0663\u0664\u0665\u0666", "\u00bd\u2167"]
    emoji = ["🙂", "👩‍👩‍👧‍👦", "👍🏽👍🏿", "🇫🇷🇯🇵", "1️⃣#️⃣", "🏴\U000e0067\U000e0062\U000e007f", "❤️‍🔥"]
    signs = ["...", "?!?", "://", "//\n", "<<48/2=24>>", "$$x^2$$", "-->", "§¶", "\x00\x1b[31m", "\ufeff", "\ufffd"]
    every = [*said, *numbers, *emoji, *signs]
    return [*every, *(a + b for a, b in itertools.product(every, repeat=2)), *(f" {a} \n{a}" for a in every)]


def code(_) -> list[str]:
    return [path.read_text() for path in [*ROOT.glob("maverick_jax/**/*.py"), *ROOT.glob("*.md"), *ROOT.glob("*.toml")]]


def written_control_tokens(tokenizer: Tokenizer) -> list[str]:
    """Each of the 2,048 control tokens inside a text. Other programs need an option to treat them as text."""
    return [f"{name} a{name}b" for name in tokenizer.controls]


CORPUS = {f.__name__: f for f in (every_character, white_space, words, code, written_control_tokens)}
corpora = pytest.mark.parametrize("corpus", CORPUS)


@pytest.fixture(scope="session")
def plain_tiktoken(any_ranks) -> tiktoken.Encoding:
    """The same ranks given to tiktoken as they are, with the pattern written out once more."""
    lines = any_ranks.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    pattern = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return tiktoken.Encoding("plain", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="module")
def as_tokenizers(any_llama4_folder) -> tokenizers.Tokenizer:
    read = tokenizers.Tokenizer.from_file(str(any_llama4_folder / "tokenizer.json"))
    read.encode_special_tokens = True
    return read


@pytest.fixture(scope="module")
def in_transformers(any_llama4_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(any_llama4_folder)


@corpora
def test_ids_of_all_kinds_of_text(corpus, any_llama4, plain_tiktoken, as_tokenizers, in_transformers):
    texts = CORPUS[corpus](any_llama4)
    ours = any_llama4.encode_batch(texts)
    assert max(itertools.chain(*ours)) < 200_000  # no control token
    assert ours == plain_tiktoken.encode_ordinary_batch(texts, num_threads=2)
    assert ours == [e.ids for e in as_tokenizers.encode_batch_fast(texts, add_special_tokens=False)]
    assert ours == in_transformers(texts, add_special_tokens=False, split_special_tokens=True).input_ids
    assert [any_llama4.decode(ids) for ids in ours] == texts


def test_the_export_read_back_gives_the_same(any_llama4, any_llama4_folder):
    exported = load_tokenizer(any_llama4_folder)
    texts = written_control_tokens(any_llama4) + words(any_llama4)
    assert exported.encode_batch(texts) == any_llama4.encode_batch(texts)
    assert (exported.vocab_size, exported.controls) == (any_llama4.vocab_size, any_llama4.controls)
    ends = [(t.bos_id, t.eos_id, t.pad_id) for t in (exported, any_llama4)]
    assert ends == [(200000, 200001, 200018)] * 2


@given(text=st.text(max_size=40))
def test_llama4_ids_are_tiktokens_for_any_text(any_llama4, plain_tiktoken, text):
    assert any_llama4.encode(text) == plain_tiktoken.encode_ordinary(text)


def test_llama4_pieces_of_a_long_text_change_no_id(any_llama4, plain_tiktoken):
    text = (ROOT / "data" / "assets" / "tinyshakespeare.txt").read_text()
    assert len(list(safe_pieces(text))) > 1
    assert any_llama4.encode(text) == plain_tiktoken.encode_ordinary(text)
