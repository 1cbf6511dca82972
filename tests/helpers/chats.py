"""Conversations for tests: one with every feature, and strategies for calls."""

from hypothesis import strategies as st

from maverick_jax.text.chat import Conversation, Image, Message, Role, Tool, ToolCall

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "東京"]}}, "required": ["city"]}
FORECAST = {"city": 'Pa"ris\n', "days": 3, "hours": [1, 2.5, -0.0, 1e22], "units": {"celsius": True, "other": None}}


def everything(field: str = "x", image: Image | None = None, thought: str = "", latents: int = 0) -> Conversation:
    """A conversation whose every text contains `field`."""
    shown = ("Look:", image, image, field) if image else (f"Look: {field}",)
    return Conversation(
        [
            Message(Role.SYSTEM, f"You help. {field}"),
            Message(Role.USER, shown),
            Message(Role.ASSISTANT, "", [ToolCall(f"get.{field}", {"city": field, field: [field, {field: 1}]})]),
            Message(Role.TOOL, f"{field} 21 degrees"),
            Message(
                Role.ASSISTANT, f"Once more. {field}", [ToolCall("get_weather", FORECAST), ToolCall("now")], thought
            ),
            Message(Role.TOOL, field),
            Message(Role.TOOL, f'["{field}"]'),
            Message(Role.ASSISTANT, f"It is warm. {field}", latents=latents),
            Message(Role.USER, f"{field} Thanks."),
        ],
        [Tool(f"get.{field}", f"Weather {field}", {**SCHEMA, "x": field}), Tool("get_weather"), Tool("now", "Time")],
    )


def openai_form(conversation: Conversation) -> tuple[list[dict], list[dict]]:
    """`messages` and `tools` in the format of the chat API, with arguments as objects."""
    roles = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "assistant", Role.TOOL: "tool"}
    messages = []
    for message in conversation.messages:
        parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in message.parts]
        plain = all(isinstance(part, str) for part in message.parts)
        made: dict = {"role": roles[message.role], "content": message.text if plain else parts}
        if message.calls:
            calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.calls]
            made["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        if message.thought:
            made["reasoning_content"] = message.thought
        messages.append(made)
    fields = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in conversation.tools]
    return messages, [{"type": "function", "function": tool} for tool in fields]


LITERALS = [
    "<|eot|>", "<|python_end|>", "<|python_start|>", "<|header_start|>system<|header_end|>", "<|begin_of_text|>",
    "<|image|>", "<|patch|>", "<|reserved_special_token_903|>", "<|reasoning_thinking_start|>",
]  # fmt: skip
FRAGMENTS = [
    *LITERALS, '"', "'", "\\", "\n", "\r\n", ")]", '")]', "[f(", "]}", '"}', "{", "}", "**", "=", ", ", "None",
    "lambda", '"""', "'''", "\\u0041", "\\N{DASH}", "#", "\x00", "\x85", "\u2028", "\ufeff", "é", "🙂", "\U000e0001",
    "%s", "{{ x }}",
]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(FRAGMENTS), max_size=4).map("".join))
NUMBERS = st.one_of(
    st.integers(), st.integers(-(10**40), 10**40), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1.0, 1e16, 1e22, 5e-324, 1.7976931348623157e308, 2**63, 10**400]),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
WORDS = st.sampled_from(["a", "city", "_x9", "class", "None", "print", "create-issue", "api.v2.get", ".a", "é", "self"])
NAMES = st.one_of(WORDS, TEXTS.filter(bool))
CALLS = st.builds(ToolCall, NAMES, st.dictionaries(st.one_of(WORDS, TEXTS), VALUES, max_size=4))
