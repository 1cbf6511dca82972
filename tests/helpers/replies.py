"""Replies for tests: texts, calls and thoughts as token ids, and a tokenizer of bytes that has tokens for thoughts."""

from maverick_jax.text.chat import Message, Role, ToolCall, render
from maverick_jax.text.chat.conversation import Conversation
from maverick_jax.text.chat.reply import THINKING
from maverick_jax.text.tokenizers.byte_level import CONTROLS, ByteTokenizer

THINK, THOUGHT = THINKING
CALLS = (
    ToolCall("get_weather", {"city": "Paris"}),
    ToolCall("now", {}),
    ToolCall("create-issue", {"a-b": [1, {"c": "€\n\"'"}], "text": "[f()] {"}),
    ToolCall("shop.cancel", {"order": 17, "reason": None, "sure": True}),
)


class ThinkingBytes(ByteTokenizer):
    """The byte tokenizer with tokens for thoughts."""

    vocab_size = ByteTokenizer.vocab_size + 2

    def __init__(self):
        super().__init__()
        self._set_controls({name: 256 + i for i, name in enumerate((*CONTROLS, *THINKING))})


BYTES = ThinkingBytes()


def ids_of(parts: list, tokenizer=BYTES) -> list[int]:
    """Token ids of texts, control tokens (their names) and bare ids."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += [tokenizer.controls[part]] if part in tokenizer.controls else tokenizer.encode(part)
    return ids


def calls_of(dialect: str, calls, tokenizer=BYTES, text: str = "") -> list[int]:
    """Ids of a message with calls, as the dialect writes it, up to the token that ends it."""
    message = Message(Role.ASSISTANT, text, calls)
    rendered = render(Conversation([Message(Role.USER, "x"), message]), tokenizer, dialect)
    return rendered.ids[rendered.written].tolist()
