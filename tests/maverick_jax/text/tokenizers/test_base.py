"""The bytes of single tokens."""

import pytest

from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.text import load_tokenizer
from tests.helpers.chats import FRAGMENTS


@pytest.fixture(scope="module", params=["bytes", "llama4", "hugging_face"])
def tokenizer(request):
    if request.param == "bytes":
        return load_tokenizer("bytes")
    llama4 = request.getfixturevalue("small_llama4")
    if request.param == "llama4":
        return llama4
    folder = request.getfixturevalue("tmp_path_factory").mktemp("hugging_face")
    write_hugging_face(llama4, folder)
    return load_tokenizer(folder)


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer):
    for text in [*FRAGMENTS, "Grüße an 東京 🙂"]:
        found = [tokenizer.bytes_of(i) for i in tokenizer.encode(text)]
        assert b"".join(found) == text.encode()
    assert all(tokenizer.bytes_of(i) is None for i in [*tokenizer.controls.values(), tokenizer.vocab_size, -1])
