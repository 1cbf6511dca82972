"""Parses a model's answer as a message with text and calls."""

from collections.abc import Sequence

from maverick_jax.inference.prompts import stop_ids
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import CallError, Reply, find_dialect


def read_reply(ids: Sequence[int], tokenizer: Tokenizer, dialect: str) -> Reply | CallError:
    """The assistant's message in `ids`, the tokens after its turn's header. Returns a CallError if the message is
    unfinished or empty, or if a call in it cannot be parsed."""
    written = tokenizer.decode(ids, controls=True)
    if not stop_ids(tokenizer).intersection(ids):
        return CallError(written, f"did not end within {len(ids):,} tokens")
    reply = find_dialect(dialect).parse_calls(ids, tokenizer)
    if isinstance(reply, Reply) and not (reply.calls or reply.thought or reply.text.strip()):
        return CallError(written, "is empty")
    return reply
