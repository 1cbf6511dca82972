"""The gate of a server: calls that a policy does not allow never reach a client."""

import dataclasses

from data.guard import Gate
from data.guard.gate import run_of
from launch.serve.metrics import ServerMetrics
from launch.serve.parsing import ReplyPiece, WholeReply
from maverick_jax.inference.call_names import CallNames
from maverick_jax.inference.engine.requests import TokenFilter
from maverick_jax.text.chat import Conversation, Message, Role


class ServedGate:
    """A gate with what it needs to know of a server."""

    def __init__(self, gate: Gate, names: CallNames, metrics: ServerMetrics):
        self._gate, self._names, self._metrics = gate, names, metrics

    def filter(self, conversation: Conversation) -> TokenFilter:
        """Keeps the next answer from calling a tool that the policy does not allow now."""
        barred = self._gate.barred(run_of(conversation))
        return self._names.filter([tool.name for tool in conversation.tools if tool.name not in barred])

    def judged(self, conversation: Conversation, rest: ReplyPiece, whole: WholeReply) -> tuple[ReplyPiece, WholeReply]:
        """The end of a reply with calls, as it may be sent: its calls, or in their place a question or a refusal."""
        given = Message(Role.ASSISTANT, whole.text, whole.calls)
        verdict = self._gate.check(run_of(conversation), given)
        if not verdict.words:
            return rest, whole
        self._metrics.count_held(verdict.ruling.name.lower())
        more = f" {verdict.words}" if whole.text.strip() else verdict.words
        held = dataclasses.replace(whole, text=whole.text + more, calls=(), held=verdict.as_json())
        return dataclasses.replace(rest, text=rest.text + more), held
