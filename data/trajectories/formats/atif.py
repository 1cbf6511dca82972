"""Reader of ATIF, Harbor's trajectory format (versions 1.x): one document per trajectory, steps with observations."""

from typing import Any

from data.trajectories import failures
from data.trajectories.builder import StepBuilder, at, tool_call
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.learned import take_weight
from data.trajectories.trajectory import Outcome, Provenance, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, ToolCall

NEEDS = '`schema_version`: "ATIF-v1...." and `steps`'
PREFIX = "ATIF-v1."
SOURCES = {"system": Role.SYSTEM, "user": Role.USER, "agent": Role.ASSISTANT}


def matches(record: dict[str, Any]) -> bool:
    return isinstance(version := record.get("schema_version"), str) and version.startswith("ATIF")


def read(record: Fields) -> Trajectory:
    version = record.value.get("schema_version")
    if not isinstance(version, str) or not version.startswith(PREFIX):
        raise InputError(f"schema_version: {version!r:.80}; expected {PREFIX}...")
    record.keep("schema_version", "trajectory_id", "notes", "final_metrics", "continued_trajectory_ref", "extra",
                "subagent_trajectories")  # fmt: skip
    agent = record.child("agent")
    tools = openai.take_tools(agent, "tool_definitions")
    agent.keep("name", "version", "model_name", "extra")
    if left := agent.rest():
        record.add("agent", left)
    builder = StepBuilder()
    for number, step in enumerate(record.objects("steps"), start=1):
        if (found := step.take("step_id", int)) != number:
            raise InputError(f"{step.path('step_id')}: {found}; expected {number}: steps are numbered from 1")
        _add(builder, step)
    provenance = Provenance(id=record.take_label("session_id"))
    return Trajectory(builder.finish(), tools, Outcome(), provenance, record.rest())


def _add(builder: StepBuilder, step: Fields) -> None:
    role = SOURCES.get(source := step.take("source", str))
    if role is None:
        raise InputError(f"{step.path('source')}: {source!r:.80}; expected one of {', '.join(SOURCES)}")
    text = _text(step, "message")
    step.keep("timestamp", "model_name", "reasoning_effort", "metrics", "llm_call_count", "extra")
    # Copied context gets no weight here, since it belongs to the trajectory that it was copied from.
    copied, weight = step.take("is_copied_context", bool, default=False), take_weight(step)
    weight = 0.0 if copied and weight is None else weight
    thought = step.take("reasoning_content", str, default="")
    calls = [_call(call, step) for call in step.objects("tool_calls", default=[])]
    observation = step.child("observation")
    if role is Role.SYSTEM and builder.steps:  # a message of the harness in the middle of a trajectory
        step.add("source", "system")
        role = Role.USER
    message = at(step.where, lambda: Message(role, text, calls, thought))
    results = list(observation.objects("results", default=[]))
    extra = step.rest()
    if text.strip() or calls or thought or not results:
        builder.add(step.where, message, weight=weight, extra=extra)
        extra = {}
    for result in results:
        _add_result(builder, result, weight, extra)
        extra = {}
    if left := observation.rest():
        raise InputError(f"{observation.path(next(iter(left)))}: unknown field of an observation")


def _call(fields: Fields, step: Fields) -> ToolCall:
    name, arguments = fields.take("function_name", str), fields.take("arguments", dict, str, default={})
    call = at(fields.where, lambda: tool_call(name, arguments, fields.take("tool_call_id", str, default=None)))
    fields.keep("extra")
    if left := fields.rest():
        step.add(fields.where.removeprefix(f"{step.where}."), left)
    return call


def _add_result(builder: StepBuilder, result: Fields, weight: float | None, extra: dict[str, Any]) -> None:
    """Add the result of a call, or a user message from the environment if no call is without a result. `extra`: the
    extra fields of a step without a message of its own."""
    text = _text(result, "content")
    call_id = result.take("source_call_id", str, default=None)
    nested = result.value.get("extra")
    flags = Fields(nested if isinstance(nested, dict) else {}, result.path("extra"), result.seen)
    error = failures.is_error(flags, text, failures.generic)
    result.keep("subagent_trajectory_ref", "extra")
    unasked = call_id is None and not builder.waiting()
    if unasked:
        result.add("source", "environment")
    role = Role.USER if unasked else Role.TOOL
    message = at(result.where, lambda: Message(role, text, call_id=call_id))
    extra = {"step": extra, **result.rest()} if extra else result.rest()
    builder.add(result.where, message, weight=weight, extra=extra, error=error and not unasked)


def _text(fields: Fields, name: str) -> str:
    """A text, or the joined texts of a list of parts."""
    content = fields.take(name, str, list, default="")
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        inner = Fields(part, f"{fields.path(name)}[{i}]", fields.seen)
        if (kind := inner.take("type", str)) != "text":
            raise InputError(f"{inner.path('type')}: {kind!r:.80}; expected text (images are not supported)")
        texts.append(inner.take("text", str))
        inner.keep("extra")
        if left := inner.rest():
            fields.add(f"{name}[{i}]", left)
    return "".join(texts)
