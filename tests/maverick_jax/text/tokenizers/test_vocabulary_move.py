"""What each token of one tokenizer is in another: by bytes, by name, by its pieces, or nothing."""

import json

import numpy as np
import pytest
import tokenizers

from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.tokenizers.byte_pairs import CONTROLS, LEAST_ENTRIES, train_byte_pairs
from maverick_jax.text.tokenizers.vocabulary_move import VocabularyMove

TEXTS = ["the naïve café of the theater, the thing there; 東京 東京 東京 東京\n"] * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(entries, texts)`: a byte-level BPE with so many learned tokens."""

    def make(entries: int, texts=TEXTS):
        folder = tmp_path_factory.mktemp("tokenizer")
        train_byte_pairs(texts, LEAST_ENTRIES + entries, folder)
        return load_tokenizer(folder)

    return make


def pieces_of(move: VocabularyMove, token: int) -> list[int]:
    ends = np.cumsum(move.counts)
    return move.pieces[ends[token] - move.counts[token] : ends[token]].tolist()


def test_tokens_of_bytes_are_kept_and_others_are_spelled_in_them(trained):
    old, new = load_tokenizer("bytes"), trained(12)
    move = VocabularyMove.between(old, 300, new, 320)
    for token in range(new.vocab_size):
        if (written := new.bytes_of(token)) is not None:
            assert pieces_of(move, token) == list(written)
    learned = [token for token in range(new.vocab_size) if len(new.bytes_of(token) or b"") > 1]
    assert len(learned) == 12 and all(move.counts[token] > 1 for token in learned)
    assert move.counts[new.vocab_size :].tolist() == [0] * (320 - new.vocab_size)
    assert move.unused.tolist() == [old.pad_id, *range(old.vocab_size, 300)]


def test_a_part_of_a_character_is_spelled_in_bytes(trained):
    new = trained(30)
    parts = [
        t for t in range(new.vocab_size) if (w := new.bytes_of(t)) and len(w) > 1 and b"\xe6\x9d" in w and len(w) < 4
    ]
    move = VocabularyMove.between(load_tokenizer("bytes"), 271, new, new.vocab_size)
    assert parts and all(pieces_of(move, token) == list(new.bytes_of(token) or b"") for token in parts)


def test_control_tokens_follow_their_names(trained):
    old, new = load_tokenizer("bytes"), trained(3)
    move = VocabularyMove.between(old, 271, new, new.vocab_size)
    shared = set(CONTROLS) & set(old.controls)
    assert len(shared) > 10 and set(CONTROLS) - shared
    for text in CONTROLS:
        assert pieces_of(move, new.controls[text]) == ([old.controls[text]] if text in shared else [])
    assert str(move) == (
        f"{256 + len(shared)} tokens keep their rows, 3 begin as the mean of their pieces, "
        f"{len(CONTROLS) - len(shared)} from scratch; 0 rows belong to no token"
    )


def test_pieces_are_those_of_the_old_tokenizer(trained):
    old, new = trained(12), trained(30)
    move = VocabularyMove.between(old, old.vocab_size, new, new.vocab_size)
    seen = 0
    for token in range(new.vocab_size):
        written = new.bytes_of(token)
        if written and move.counts[token] > 1 and (text := written.decode(errors="ignore")).encode() == written:
            assert pieces_of(move, token) == old.encode(text)
            seen += any(len(old.bytes_of(piece) or b"") > 1 for piece in pieces_of(move, token))
    assert seen > 3
    same = VocabularyMove.between(old, old.vocab_size, old, old.vocab_size)
    assert same.pieces.tolist() == list(range(old.vocab_size))


def test_tokens_that_are_whole_words_cannot_be_moved(tmp_path):
    model = tokenizers.models.WordLevel({"the": 0, "cafe": 1, "[UNK]": 2}, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    words, plain = load_tokenizer(tmp_path), load_tokenizer("bytes")
    for old, new in ((words, plain), (plain, words)):
        with pytest.raises(InputError, match=r"tokenizer.json: does not say which bytes .* byte-level tokenizer"):
            VocabularyMove.between(old, old.vocab_size, new, new.vocab_size)


def test_a_text_that_the_old_tokenizer_changes_has_no_pieces_but_bytes(trained, tmp_path):
    """A tokenizer that writes all text in lower case would spell THE as the."""
    lower, file = trained(12), tmp_path / "tokenizer.json"
    lower.save(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    new = trained(4, ["THE THE THE THEM THE THEM\n"] * 3)
    move = VocabularyMove.between(load_tokenizer(tmp_path), lower.vocab_size, new, new.vocab_size)
    upper = [t for t in range(new.vocab_size) if len(new.bytes_of(t) or b"") > 1]
    bytes_in_old = {lower.bytes_of(t): t for t in range(lower.vocab_size)}
    for token in upper:
        assert pieces_of(move, token) == [bytes_in_old[bytes([byte])] for byte in new.bytes_of(token) or b""]
