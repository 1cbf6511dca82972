"""Reader of SWE-agent's `.traj`: one document per trajectory, with the messages in `history`.

Actions have two forms: calls in OpenAI's format, and commands in the text, which SWE-agent has already split into
`thought` and `action`. The latter become calls of the tool `bash` with the argument `command`. Before SWE-agent 1.0,
messages do not say what they are (`message_type`): the user's message after a command is its result.
"""

from typing import Any

from data.trajectories import failures
from data.trajectories.builder import StepBuilder, at, tool_call
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.learned import take_weight
from data.trajectories.trajectory import Outcome, Provenance, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, ToolCall

NEEDS = "`history` and `trajectory`, lists"
COMMAND_TOOL = "bash"
COPIES = ("query", "messages", "response", "thought", "action", "observation")
"""Fields of a step in `trajectory` that repeat `history`."""


def matches(record: dict[str, Any]) -> bool:
    return isinstance(record.get("trajectory"), list) and "history" in record


def read(record: Fields) -> Trajectory:
    builder = StepBuilder()
    for message in record.objects("history"):
        _add(builder, message)
    for i, step in enumerate(record.objects("trajectory", default=[])):
        step.leave_out(*COPIES)
        step.keep("execution_time", "state", "extra_info")
        if left := step.rest():
            record.add(f"trajectory[{i}]", left)
    record.keep("environment", "replay_config")
    outcome = Outcome(termination=_exit_status(record))
    name = record.take_label("instance_id")
    return Trajectory(builder.finish(), (), outcome, Provenance(id=name, task=name), record.rest())


def _exit_status(record: Fields) -> str | None:
    info = record.child("info")
    status = info.take("exit_status", str, int, default=None)
    info.keep(*info.value)  # statistics and the patch
    if left := info.rest():
        record.add("info", left)
    return None if status is None else str(status)


def _add(builder: StepBuilder, fields: Fields) -> None:
    fields.keep("message_type", "agent", "tags", "cache_control")
    # Demonstrations are part of the prompt, not actions of this trajectory.
    demonstrates, weight = fields.take("is_demo", bool, default=False), take_weight(fields)
    weight = 0.0 if demonstrates and weight is None else weight
    role, kind = fields.value.get("role"), fields.value.get("message_type")
    action = fields.take("action", str, default="")
    if role == "assistant" and action and not fields.value.get("tool_calls"):
        _add_command(builder, fields, action, weight)
        return
    answered = fields.take("tool_call_ids", list, default=[])
    if role in ("tool", "user") and kind in ("observation", None) and builder.waiting():
        _add_observation(builder, fields, answered, weight)
        return
    fields.leave_out("thought")
    openai.add(builder, fields, failures.swe_agent, weight=weight)


def _add_command(builder: StepBuilder, fields: Fields, action: str, weight: float | None) -> None:
    """Add the command that SWE-agent extracted, with the thought before it; the original text is kept in `extra`."""
    fields.skip("role", "tool_calls")
    thought = fields.take("thought", str, default="").strip()
    text = _text(fields)
    if text.strip() not in (thought, action.strip()):
        fields.add("content", text)
    call: ToolCall = at(fields.path("action"), lambda: tool_call(COMMAND_TOOL, {"command": action.strip("\n")}))
    message = at(fields.where, lambda: Message(Role.ASSISTANT, thought, [call]))
    builder.add(fields.where, message, weight=weight, extra=fields.rest())


def _add_observation(builder: StepBuilder, fields: Fields, answered: list[Any], weight: float | None) -> None:
    fields.skip("role")
    call_id = fields.take("tool_call_id", str, default=answered[0] if answered else None)
    if len(answered) > 1:
        raise InputError(f"{fields.path('tool_call_ids')}: one result for {len(answered)} calls; expected one per call")
    text = _text(fields)
    message = at(fields.where, lambda: Message(Role.TOOL, text, call_id=call_id))
    error = failures.is_error(fields, text, failures.swe_agent)
    builder.add(fields.where, message, error=error, weight=weight, extra=fields.rest())


def _text(fields: Fields) -> str:
    """`content`, given as text or as a list of text parts."""
    content = fields.take("content", str, list, default="")
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InputError(f"{fields.path('content')}[{i}]: expected a text part; images are not supported")
        texts.append(part["text"])
        if left := {name: value for name, value in part.items() if name not in ("type", "text", "cache_control")}:
            fields.add(f"content[{i}]", left)
    return "".join(texts)
