"""Llama 4's tokenizer: byte-level BPE from a tiktoken rank file, and 2,048 control tokens.

The file contains only ranks. The split pattern, the control tokens and their ids come from the public Llama 4 release.
"""

import base64
import binascii
import concurrent.futures
import itertools
import os
import pathlib
import re
from collections.abc import Sequence

import tiktoken

from maverick_jax.errors import InputError
from maverick_jax.text.tokenizers.base import RANKS_FILE, Tokenizer, digest, read_file

NUM_RANKS, NUM_CONTROLS = 200_000, 2_048
MAX_GROUP = 64
"""Maximum number of texts that a thread encodes as one task."""
MAX_PIECE, MAX_RUN = 400_000, 25_000
"""Maximum number of characters in one call of tiktoken, and in one unbroken stretch of (non-)whitespace."""

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPLIT_PATTERN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

_RUN = re.compile(r"\s++|\S++")
_SAFE_CUT = re.compile(r"\n(?=[^\W_])")
"""A line that begins with a letter or digit always begins a new match of the split pattern, so a cut is safe here."""


def _reserved(family: str, first: int, last: int) -> list[str]:
    prefix = f"{family}_" if family else ""
    return [f"<|{prefix}reserved_special_token_{i}|>" for i in range(first, last + 1)]


def control_texts() -> list[str]:
    """Written forms of the control tokens in the order of their ids, from 200000."""

    def named(*names: str) -> list[str]:
        return [f"<|{name}|>" for name in names]

    return [
        *named("begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix"),
        *named("header_start", "header_end", "eom", "eot", "step"),
        *_reserved("text_post_train", 0, 5),
        *named("python_start", "python_end", "finetune_right_pad"),
        *_reserved("text_post_train", 8, 68),
        *named("image_start", "image_end"),
        *_reserved("vision", 0, 1),
        *named("tile_x_separator", "tile_y_separator"),
        *_reserved("vision", 2, 5),
        *named("image"),
        *_reserved("vision", 6, 6),
        *named("patch"),
        *_reserved("vision", 7, 1047),
        *_reserved("reasoning", 0, 7),
        *named("reasoning_thinking_start", "reasoning_thinking_end"),
        *_reserved("", 0, 903),
    ]


class Llama4Tokenizer(Tokenizer):
    """A vocabulary of 202,048 ids: 200,000 ranks, then the control tokens."""

    vocab_size = NUM_RANKS + NUM_CONTROLS
    threads = os.cpu_count() or 1
    """Number of threads that tokenize texts."""

    def __init__(self, path: str | pathlib.Path):
        """Read the rank file at `path`. Raises InputError naming the first bad line."""
        self._content = read_file(pathlib.Path(path))
        self.ranks = _parse_ranks(self._content, pathlib.Path(path))
        self.name = str(path)
        self.fingerprint = digest(b"llama4", self._content)
        self._set_controls({text: NUM_RANKS + i for i, text in enumerate(control_texts())})
        self.bos_id = self.controls["<|begin_of_text|>"]
        self.eos_id = self.controls["<|end_of_text|>"]
        self.pad_id = self.controls["<|finetune_right_pad|>"]
        self._encoding = tiktoken.Encoding(
            name="llama4", pat_str=SPLIT_PATTERN, mergeable_ranks=self.ranks, special_tokens=dict(self.controls)
        )

    def save(self, directory: str | pathlib.Path) -> None:
        (pathlib.Path(directory) / RANKS_FILE).write_bytes(self._content)

    def bytes_of(self, token: int) -> bytes | None:
        return self._encoding.decode_single_token_bytes(token) if 0 <= token < NUM_RANKS else None

    def starts(self, text: str, ids: Sequence[int]) -> list[int]:
        return self._encoding.decode_with_offsets(ids)[1]

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        pieces = [safe_pieces(text) for text in texts]
        encoded = iter(self._encode_pieces([piece for parts in pieces for piece in parts]))
        joined = lambda count: list(itertools.chain.from_iterable(itertools.islice(encoded, count)))
        return [next(encoded) if len(parts) == 1 else joined(len(parts)) for parts in pieces]

    def _encode_pieces(self, pieces: list[str]) -> list[list[int]]:
        encode = self._encoding.encode_ordinary
        size = max(1, min(MAX_GROUP, len(pieces) // (4 * self.threads)))
        groups = [pieces[i : i + size] for i in range(0, len(pieces), size)]
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            return [ids for found in pool.map(lambda group: [encode(p) for p in group], groups) for ids in found]

    def _decode(self, ids: list[int]) -> str:
        return self._encoding.decode(ids)


def safe_pieces(text: str) -> list[str]:
    """`text` cut into pieces of at most MAX_PIECE characters without a stretch of (non-)whitespace above MAX_RUN.

    If the split pattern has a cut within reach, the piece ends there, so that the ids do not change.
    """
    pieces = []
    begin = 0
    while len(text) - begin > MAX_PIECE:
        end = begin + MAX_PIECE
        cuts = [m.end() for m in _SAFE_CUT.finditer(text, end - MAX_PIECE // 4, end)]
        end = cuts[-1] if cuts else end
        pieces += _short_runs(text[begin:end])
        begin = end
    return pieces + _short_runs(text[begin:])


def _short_runs(text: str) -> list[str]:
    if not _may_have_long_run(text):
        return [text]
    pieces = []
    begin = 0
    for run in _RUN.finditer(text):
        for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
            pieces.append(text[begin:cut])
            begin = cut
    return [*pieces, text[begin:]]


def _may_have_long_run(text: str) -> bool:
    """Whether a run of more than MAX_RUN is possible: it would cover two adjacent multiples of MAX_RUN / 2."""
    half = MAX_RUN // 2
    if len(text) <= MAX_RUN:
        return False
    return any(run.end() - at >= half for at in range(0, len(text), half) if (run := _RUN.match(text, at)))


def _parse_ranks(content: bytes, path: pathlib.Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        token = _parse_line(line, number, path)
        if token in ranks:
            raise InputError(f"{path}: line {number}: token {token!r} was already on line {ranks[token] + 1}")
        ranks[token] = number - 1
    if len(ranks) != NUM_RANKS:
        raise InputError(f"{path}: line {len(ranks)} is the last; expected {NUM_RANKS} lines, the ranks of a "
                         "Llama 4 tokenizer (the file is truncated or belongs to another model)")  # fmt: skip
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise InputError(f"{path}: byte {missing[0]} has no rank on any of the {NUM_RANKS} lines")
    return ranks


def _parse_line(line: bytes, number: int, path: pathlib.Path) -> bytes:
    fields = line.split(b" ")
    shown = line[:60].decode("utf-8", "backslashreplace")
    if len(fields) != 2:
        raise InputError(f"{path}: line {number}: expected `BASE64 RANK`, got {shown!r} (SentencePiece models are not "
                         "supported: convert them to tokenizer.json)")  # fmt: skip
    try:
        token = base64.b64decode(fields[0], validate=True)
    except binascii.Error as error:
        raise InputError(f"{path}: line {number}: {shown!r} is not base64: {error}") from None
    if not token or fields[1] != str(number - 1).encode():
        raise InputError(f"{path}: line {number}: expected a token and rank {number - 1}, got {shown!r}")
    return token
