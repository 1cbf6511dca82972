"""Log-probabilities in the forms of the chat and the completions API."""

from collections.abc import Sequence
from typing import Any

from maverick_jax.inference.engine.requests import TokenScore
from maverick_jax.text import Tokenizer

LEAST = -9999.0
"""What stands for minus infinity, which JSON does not have."""


def chat_logprobs(scores: Sequence[TokenScore], top: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """`logprobs.content` of a choice: one entry for each token."""
    found = []
    for score in scores:
        alternatives = [_entry(token, log_prob, tokenizer) for token, log_prob in score.top[:top]]
        found.append({**_entry(score.token, score.log_prob, tokenizer), "top_logprobs": alternatives})
    return found


def _entry(token: int, log_prob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    content = _bytes_of(token, tokenizer)
    text = content.decode("utf-8", "replace")
    return {"token": text, "bytes": list(content), "logprob": _finite(log_prob)}


def completion_logprobs(
    scores: Sequence[TokenScore | int], top: int, tokenizer: Tokenizer, *, as_ids: bool, offset: int = 0
) -> dict[str, Any]:
    """`logprobs` of a completion. A bare id stands for a token without score, the first of a text. `offset`: characters
    before the first token. The token itself is always among its `top_logprobs`, with the same number."""
    tokens: list[str] = []
    log_probs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for score in scores:
        token = score if isinstance(score, int) else score.token
        tokens.append(_label(token, tokenizer, as_ids))
        offsets.append(offset)
        offset += len(tokenizer.decode([token], controls=True))
        if isinstance(score, int):
            log_probs.append(None)
            tops.append(None)
            continue
        own = next((log_prob for other, log_prob in score.top if other == token), score.log_prob)
        log_probs.append(_finite(own))
        likely: dict[str, float] = {}
        for other, log_prob in [*score.top[:top], (token, own)]:
            label = _label(other, tokenizer, as_ids)
            likely[label] = max(_finite(log_prob), likely.get(label, LEAST))
        tops.append(likely)
    return {"tokens": tokens, "token_logprobs": log_probs, "top_logprobs": tops, "text_offset": offsets}


def _label(token: int, tokenizer: Tokenizer, as_id: bool) -> str:
    if as_id:
        return f"token_id:{token}"
    content = _bytes_of(token, tokenizer)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:  # half a character
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _bytes_of(token: int, tokenizer: Tokenizer) -> bytes:
    content = tokenizer.bytes_of(token)
    return tokenizer.decode([token], controls=True).encode() if content is None else content


def _finite(log_prob: float) -> float:
    return max(float(log_prob), LEAST)
