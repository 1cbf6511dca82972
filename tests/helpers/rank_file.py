"""Write a tiktoken rank file of Llama 4's size with invented tokens: bytes, pairs of characters and numbers."""

import base64
import itertools
import pathlib

from maverick_jax.text.tokenizers.llama4 import NUM_RANKS


def rank_line(token: bytes, rank: int) -> bytes:
    return base64.b64encode(token) + b" " + str(rank).encode() + b"\n"


def write_rank_file(path: pathlib.Path) -> pathlib.Path:
    printable = [bytes([i]) for i in range(0x20, 0x7F)]
    pairs = (a + b for a, b in itertools.product(printable, repeat=2))
    lines = (b"\n\n", b"\n\n\n", b'="', b'"}]', b")]", b'")]')
    fill = (b"token %d" % i for i in itertools.count())
    tokens = dict.fromkeys(itertools.chain((bytes([i]) for i in range(256)), pairs, lines))
    ranks = itertools.islice(itertools.chain(tokens, fill), NUM_RANKS)
    path.write_bytes(b"".join(rank_line(token, rank) for rank, token in enumerate(ranks)))
    return path
