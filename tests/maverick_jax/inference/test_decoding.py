"""Pieces of text together are the text of all tokens, no piece ends inside a character, and each token is decoded a
bounded number of times."""

import hypothesis
import pytest
from hypothesis import strategies as st

from maverick_jax.inference.decoding import LONGEST, TextDecoder, text_of
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer

BYTES = ByteTokenizer()


def pieces(tokenizer, ids: list[int], **options) -> list[str]:
    decoder = TextDecoder(tokenizer, **options)
    return [*map(decoder.add, ids), decoder.end()]


def test_no_piece_ends_inside_a_character():
    ids = [*"a→é\ufffd".encode(), 0xE2]
    assert pieces(BYTES, ids) == ["a", "", "", "→", "", "é", "", "", "", "\ufffd", "\ufffd"]
    assert [*text_of(BYTES, iter(ids))] == ["a", "→", "é", "\ufffd", "\ufffd"]


@hypothesis.given(
    st.lists(st.integers(0, BYTES.vocab_size - 1) | st.sampled_from([0xE2, 0x86, 0x92, 0xF0, 0x9F, 0x80]), max_size=80)
)
def test_all_pieces_together_are_the_whole_text(ids):
    assert "".join(pieces(BYTES, ids)) == BYTES.decode(ids)
    assert "".join(pieces(BYTES, ids, controls=True)) == BYTES.decode(ids, controls=True)


@hypothesis.given(text=st.text(max_size=40), ids=st.lists(st.integers(0, 200_000), max_size=40))
def test_pieces_of_llama_4s_tokenizer_are_the_whole_text(small_llama4, text, ids):
    for tokens in (small_llama4.encode(text), ids):
        assert "".join(pieces(small_llama4, tokens)) == small_llama4.decode(tokens)


def test_bytes_after_the_end_complete_no_character_before_it():
    decoder = TextDecoder(BYTES)
    assert decoder.add(0xE2) + decoder.end() == "\ufffd"  # as where a control token follows
    assert "".join([*map(decoder.add, [0x86, 0x92, ord("a")]), decoder.end()]) == "\ufffd\ufffda"


@pytest.mark.parametrize("token", [ord("a"), 0xE2, 0x80], ids=hex)
def test_a_token_is_decoded_a_bounded_number_of_times(monkeypatch, token):
    work = []
    monkeypatch.setattr(
        BYTES, "decode", lambda ids, **_: work.append(len(list(ids))) or ByteTokenizer.decode(BYTES, ids)
    )
    assert len("".join(pieces(BYTES, [token] * 2000))) > 0
    assert sum(work) < 2000 * 6 * LONGEST
