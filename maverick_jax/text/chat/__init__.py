"""Conversations with tools: types, rendering to token ids and kinds, and parsing (docs/reference/chat.md)."""

from maverick_jax.text.chat.conversation import Conversation, Image, Message, Role, Tool, ToolCall
from maverick_jax.text.chat.dialects import DEFAULT, DIALECTS, Dialect, dialect_of, find_dialect
from maverick_jax.text.chat.openai import from_openai
from maverick_jax.text.chat.render import render
from maverick_jax.text.chat.reply import CallError, Reply
from maverick_jax.text.chat.spans import Control, Kind, Rendered, Span
from maverick_jax.text.chat.template import chat_template

__all__ = [
    "DEFAULT",
    "DIALECTS",
    "CallError",
    "Control",
    "Conversation",
    "Dialect",
    "Image",
    "Kind",
    "Message",
    "Rendered",
    "Reply",
    "Role",
    "Span",
    "Tool",
    "ToolCall",
    "chat_template",
    "dialect_of",
    "find_dialect",
    "from_openai",
    "render",
]
