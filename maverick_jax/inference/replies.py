"""What a model wrote, as a message: text and calls, or why it is none."""

from collections.abc import Sequence

from maverick_jax.inference.sampler import stop_ids
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import CallError, Reply, find_dialect


def read_reply(ids: Sequence[int], tokenizer: Tokenizer, dialect: str) -> Reply | CallError:
    """The assistant's message that the model wrote as `ids`, after the header of its turn. A CallError where it did not
    end, is empty, or holds a call that cannot be understood."""
    written = tokenizer.decode(ids, controls=True)
    if not stop_ids(tokenizer).intersection(ids):
        return CallError(written, f"did not end within {len(ids):,} tokens")
    reply = find_dialect(dialect).parse_calls(ids, tokenizer)
    if isinstance(reply, Reply) and not (reply.calls or reply.thought or reply.text.strip()):
        return CallError(written, "is empty")
    return reply
