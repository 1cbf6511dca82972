"""`maverick chat`: a conversation in the terminal, or with standard input as the user, one message per line."""

from collections.abc import Callable, Iterator
from typing import IO, Any

from data.guard import Gate
from data.guard.gate import run_of
from maverick_jax.errors import InputError, harmless
from maverick_jax.inference import ChatSession, stop_ids, text_of
from maverick_jax.inference.engine import Engine, EngineSettings
from maverick_jax.text.chat import CallError, Conversation, Message, Reply, Role, ToolCall

ONE_USER = EngineSettings(slots=1, context=32_768, piece=512, steps=1, keep_bytes=1 << 34, lazy=True)
"""Of an engine for one conversation."""
HELP = "/reset starts a new conversation, /exit quits"


def converse(
    engine: Engine, chat: ChatSession, lines: IO[str], out: IO[str] | None, gate: Gate | None = None
) -> list[dict[str, Any]]:
    """Answers every line until /exit or the end of input. Answers are written to `out` while they are generated. What
    `gate` holds back is shown, and the conversation goes on with the gate's question or refusal in its place. Returns
    the turns as JSON values."""
    watch = None if gate is None else GatedConversation(gate, list(chat.system))
    asks = out is not None and lines.isatty()
    show = lambda text, end="": out.write(harmless(text) + end) and out.flush() if out else None
    if asks:
        show(HELP, "\n")
    turns = []
    for line in _read(lines, lambda: show("you> ") if asks else None):
        if not asks:
            show(f"you> {line}", "\n")
        if line.startswith("/"):
            if line == "/reset":
                chat.reset()
                watch = None if gate is None else GatedConversation(gate, list(chat.system))
            else:
                show(f"no command {line!r}: {HELP}", "\n")
            continue
        turns.append(_answer(engine, chat, line, show, watch))
    return turns


class GatedConversation:
    """A gate over a conversation in which no call is carried out."""

    def __init__(self, gate: Gate, messages: list[Message]):
        self.gate, self.messages = gate, messages

    def held(self, user: str, reply: Reply | CallError) -> tuple[str, dict[str, Any]] | None:
        """Adds a turn. Returns the text that takes the place of a reply whose calls are held back, and the evidence."""
        self.messages.append(Message(Role.USER, user))
        if isinstance(reply, CallError) or not (reply.text.strip() or reply.calls):
            return None
        message = reply.message()
        verdict = self.gate.check(run_of(Conversation(self.messages)), message)
        self.messages.append(shown := verdict.message(message))
        return (shown.text, verdict.as_json()) if verdict.words else None


def _read(lines: IO[str], ask: Callable[[], Any]) -> Iterator[str]:
    while True:
        ask()
        try:
            line = lines.readline()
        except UnicodeDecodeError as error:
            raise InputError(f"standard input: not {error.encoding}: {error.reason}") from None
        if not line or line.strip() == "/exit":
            return
        if line.strip():
            yield line.strip()


def _answer(
    engine: Engine, chat: ChatSession, line: str, show: Callable[..., Any], watch: GatedConversation | None
) -> dict[str, Any]:
    show("model> ")
    written: list[int] = []
    stops = stop_ids(chat.tokenizer)

    def said() -> Iterator[int]:
        for token in chat.say(engine, line):
            written.append(token)
            if token not in stops:
                yield token

    for piece in text_of(chat.tokenizer, said()):
        show(piece)
    show("\n")
    found = chat.parse(written)
    names = {i: name for name, i in chat.tokenizer.controls.items()}
    stop = names.get(written[-1]) if written and written[-1] in stops else None
    if stop is None:
        show(f"  (cut after {chat.max_tokens} tokens)", "\n")
    held = None if watch is None else watch.held(line, found)
    if isinstance(found, CallError):
        show(f"  {found}", "\n")
        return {"user": line, "text": found.text, "calls": [], "error": found.reason, "stop": stop}
    for call in found.calls:
        show(f"  call {_shown(call)}", "\n")
    if held is not None:
        text, verdict = held
        chat.replace(text)
        show(f"  held back: {text}", "\n")
        return {"user": line, "text": text, "calls": [], "error": None, "stop": stop, "held_back": verdict}
    calls = [{"name": call.name, "arguments": call.arguments} for call in found.calls]
    return {"user": line, "text": found.text, "calls": calls, "error": None, "stop": stop}


def _shown(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"
