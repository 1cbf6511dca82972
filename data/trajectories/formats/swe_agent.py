"""SWE-agent's `.traj`: one document per run; its `history` is what was said.

Two ways of acting are in use: calls in OpenAI's form, and commands that stand in the text, which SWE-agent has already
taken apart into `thought` and `action`. The latter become calls of the tool `bash` with the argument `command`.
"""

from typing import Any

from data.trajectories import failures
from data.trajectories.builder import Builder, at, tool_call
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.trajectory import Outcome, Provenance, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, ToolCall

NEEDS = "`history` and `trajectory`, lists"
COMMAND_TOOL = "bash"
COPIES = ("query", "messages", "response", "thought", "action", "observation")
"""Of a step of `trajectory`: what stands in `history` too."""


def matches(record: dict[str, Any]) -> bool:
    return isinstance(record.get("trajectory"), list) and "history" in record


def read(record: Fields) -> Trajectory:
    builder = Builder()
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
    info.keep(*info.value)  # statistics of the run and its patch
    if left := info.rest():
        record.add("info", left)
    return None if status is None else str(status)


def _add(builder: Builder, fields: Fields) -> None:
    fields.keep("message_type", "agent", "tags", "cache_control")
    # Demonstrations are shown, not done: what they hold is no choice of this run.
    weight = 0.0 if fields.take("is_demo", bool, default=False) else None
    role, kind = fields.value.get("role"), fields.value.get("message_type")
    action = fields.take("action", str, default="")
    if role == "assistant" and action and not fields.value.get("tool_calls"):
        _add_command(builder, fields, action, weight)
        return
    answered = fields.take("tool_call_ids", list, default=[])
    if role in ("tool", "user") and kind == "observation" and builder.waiting():
        _add_observation(builder, fields, answered, weight)
        return
    fields.leave_out("thought")
    openai.add(builder, fields, failures.swe_agent, **({} if weight is None else {"weight": weight}))


def _add_command(builder: Builder, fields: Fields, action: str, weight: float | None) -> None:
    """What SWE-agent took for the command, and the thought before it; the text they were taken from stays too."""
    fields.skip("role", "tool_calls")
    said = fields.take("thought", str, default="").strip()
    text = _text(fields)
    if text.strip() not in (said, action.strip()):
        fields.add("content", text)
    call: ToolCall = at(fields.path("action"), lambda: tool_call(COMMAND_TOOL, {"command": action}))
    message = at(fields.where, lambda: Message(Role.ASSISTANT, said, [call]))
    builder.add(fields.where, message, weight=weight, extra=fields.rest())


def _add_observation(builder: Builder, fields: Fields, answered: list[Any], weight: float | None) -> None:
    fields.skip("role")
    call_id = fields.take("tool_call_id", str, default=answered[0] if answered else None)
    if len(answered) > 1:
        raise InputError(f"{fields.path('tool_call_ids')}: {len(answered)} calls have one result; expected one each")
    text = _text(fields)
    message = at(fields.where, lambda: Message(Role.TOOL, text, call_id=call_id))
    error = failures.is_error(fields, text, failures.swe_agent)
    builder.add(fields.where, message, error=error, weight=weight, extra=fields.rest())


def _text(fields: Fields) -> str:
    """`content`, as text or as parts of text."""
    content = fields.take("content", str, list, default="")
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InputError(f"{fields.path('content')}[{i}]: expected a part of text; images are not read")
        texts.append(part["text"])
        if left := {name: value for name, value in part.items() if name not in ("type", "text", "cache_control")}:
            fields.add(f"content[{i}]", left)
    return "".join(texts)
