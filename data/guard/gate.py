"""The gate between an agent's messages and its tools. It asks every guard about every call; scrutiny rises with the
privilege of the tool that is called."""

import dataclasses
import logging
import math
import queue
import threading
from collections.abc import Sequence
from typing import Any

from data.guard.base import Guard, Risk, Ruling, ruling_of
from data.guard.monitor import PolicyMonitor
from data.policy import PolicyRule, ToolPolicy, barred_tools, user_agreed
from data.policy.config import MOST_PRIVILEGE
from data.trajectories.failures import generic
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text.chat import Conversation, Message, Role, ToolCall, values

FAILS_CLOSED = 3
"""From this privilege on, a call is blocked if a guard fails."""
FAILED = "guard failed"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CallVerdict:
    """What the gate says of one call, and why."""

    call: ToolCall
    privilege: int
    ruling: Ruling
    evidence: tuple[tuple[str, Risk], ...] = ()
    """Names of guards and what they found, of those that found anything."""

    @property
    def label(self) -> str:
        return next((risk.label for _, risk in self.evidence if risk.label), "")


@dataclasses.dataclass(frozen=True)
class GateVerdict:
    """What the gate says of a message: the strictest ruling on its calls."""

    calls: tuple[CallVerdict, ...] = ()

    @property
    def ruling(self) -> Ruling:
        return max((one.ruling for one in self.calls), default=Ruling.ALLOW)

    @property
    def words(self) -> str:
        """The text that replaces the calls: a question that asks the user to agree, or a refusal. Empty if the gate
        allows the calls."""
        held = [one for one in self.calls if one.ruling is self.ruling]
        return {Ruling.ALLOW: lambda _: "", Ruling.CONFIRM: _question, Ruling.BLOCK: _refusal}[self.ruling](held)

    def message(self, given: Message) -> Message:
        """The message that takes the place of `given`: itself, or its text and then `words`."""
        return Message(Role.ASSISTANT, f"{given.text.strip()} {self.words}".strip()) if self.words else given

    def as_json(self) -> dict[str, Any]:
        """The ruling and the evidence, as JSON values."""
        calls = [
            {"tool": one.call.name, "privilege": one.privilege, "ruling": one.ruling.name.lower(),
             "evidence": [{"guard": name, **risk._asdict()} for name, risk in one.evidence]}
            for one in self.calls if one.evidence
        ]  # fmt: skip
        return {"ruling": self.ruling.name.lower(), "calls": calls}


class Gate:
    """Lets calls pass, has them confirmed, or refuses them. Its thresholds are the policy's."""

    def __init__(
        self, policy: ToolPolicy, guards: Sequence[Guard] = (), time_limit: float | None = 30.0, log: bool = True
    ):
        """guards: those beside the policy's own monitor. time_limit: seconds for the answer of each; None: no limit.
        log: whether what is held back is logged."""
        self.policy, self._limit, self._logs = policy, time_limit, log
        self._guards = (PolicyMonitor(policy), *guards)

    def barred(self, run: Trajectory) -> set[str]:
        """Tools of which every call in the next message would be refused, whatever its arguments. Those that only lack
        the user's agreement are not among them: their calls become questions."""
        asks = lambda name, rules: set(rules) == {PolicyRule.ESCALATION} and self._privilege(name) < MOST_PRIVILEGE
        return {name for name, rules in barred_tools(run, self.policy).items() if not asks(name, rules)}

    def _privilege(self, name: str) -> int:
        rule = self.policy.tools.get(name)
        return MOST_PRIVILEGE if rule is None else rule.privilege

    def check(self, run: Trajectory, message: Message) -> GateVerdict:
        """The verdict on the calls of `message`, the assistant's next one after `run`. Whatever is held back is logged
        with its evidence, unless the gate was made without a log."""
        if not message.calls:
            return GateVerdict()
        whole = dataclasses.replace(run, steps=(*run.steps, Step(message)))
        answers = [(guard.name, self._risks(guard, whole)) for guard in self._guards]
        found = GateVerdict(tuple(self._verdict(whole, i, answers) for i in range(len(message.calls))))
        if self._logs and (found.ruling is not Ruling.ALLOW or any(one.evidence for one in found.calls)):
            _log.info("guard: %s", values.write(found.as_json()))
        return found

    def _verdict(self, run: Trajectory, i: int, answers: Sequence[tuple[str, Sequence[Risk] | str]]) -> CallVerdict:
        """The strictest ruling on call `i` of the last message of `run`."""
        call = run.steps[-1].message.calls[i]
        privilege = self._privilege(call.name)
        ruling, evidence = Ruling.ALLOW, []
        for name, risks in answers:
            if isinstance(risks, str):
                own = Ruling.BLOCK if privilege >= FAILS_CLOSED else Ruling.ALLOW
                risk = Risk(1.0, FAILED, risks, asks=False)
            else:
                risk = risks[i]
                own = ruling_of(risk, privilege, self.policy.thresholds)
                if own is Ruling.CONFIRM and user_agreed(run, self.policy, len(run.steps) - 1, i):
                    own = Ruling.ALLOW
            ruling = max(ruling, own)
            if own is not Ruling.ALLOW or risk.label:
                evidence.append((name, risk))
        return CallVerdict(call, privilege, ruling, tuple(evidence))

    def _risks(self, guard: Guard, run: Trajectory) -> Sequence[Risk] | str:
        """The guard's answer, or how it failed."""
        if self._limit is None:
            return _answer(guard, run)
        answers: queue.SimpleQueue[Sequence[Risk] | str] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(_answer(guard, run)), name="guard", daemon=True).start()
        try:
            return answers.get(timeout=self._limit)
        except queue.Empty:
            return f"no answer within {self._limit:g} seconds"


def run_of(conversation: Conversation) -> Trajectory:
    """A conversation as a run, with results that read like errors as errors."""
    is_error = lambda message: message.role is Role.TOOL and generic(message.text)
    return Trajectory([Step(message, is_error(message)) for message in conversation.messages], conversation.tools)


def _answer(guard: Guard, run: Trajectory) -> Sequence[Risk] | str:
    try:
        found = list(guard.risks(run))
        wanted = len(run.steps[-1].message.calls)
        if len(found) != wanted or not all(isinstance(risk, Risk) for risk in found):
            return f"{len(found)} answers to {wanted} calls; expected a Risk for each"
        wrong = [risk.score for risk in found if not (math.isfinite(risk.score) and 0 <= risk.score <= 1)]
        return f"score {wrong[0]}; expected 0 to 1" if wrong else found
    except Exception as error:  # whatever it raises, it has failed
        return f"{type(error).__name__}: {str(error)[:200]}"


def _question(held: Sequence[CallVerdict]) -> str:
    return f"May I call {' and '.join(_in_words(one.call) for one in held)}?"


def _refusal(held: Sequence[CallVerdict]) -> str:
    names = ", ".join(dict.fromkeys(f"{one.call.name} ({one.label})" if one.label else one.call.name for one in held))
    return f"I may not do that here: {names}."


def _in_words(call: ToolCall) -> str:
    """The call with every argument, so that the user's yes is about these."""
    plain = lambda value: value if isinstance(value, str) else values.write(value)
    given = ", ".join(f"{key} {plain(value)}" for key, value in call.arguments.items())
    return f"{call.name} with {given}" if given else call.name
