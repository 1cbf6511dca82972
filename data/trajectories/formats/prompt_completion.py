"""Reader of prompts with completions, each a text or messages in OpenAI's format. The completion is learned."""

from typing import Any

from data.trajectories import failures
from data.trajectories.builder import StepBuilder, at
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.trajectory import Outcome, Provenance, Trajectory
from maverick_jax.text.chat import Message, Role

NEEDS = "`prompt` and `completion`"


def matches(record: dict[str, Any]) -> bool:
    return "prompt" in record and "completion" in record


def read(record: Fields) -> Trajectory:
    """Read a record with `prompt`, `completion`, and optional `system`, `tools`, `reward`, `id`. A prompt that is a
    text is the user's message, and a completion that is a text is the assistant's. The assistant's messages in a
    prompt are not learned, unless they say so."""
    tools = openai.take_tools(record)
    builder = StepBuilder(tools)
    if system := record.take("system", str, default=""):
        builder.add("system", at("system", lambda: Message(Role.SYSTEM, system)))
    _add(builder, record, "prompt", Role.USER)
    _add(builder, record, "completion", Role.ASSISTANT)
    outcome = Outcome(record.take("reward", float, default=None))
    return Trajectory(builder.finish(), tools, outcome, Provenance(id=record.take_label("id")), record.rest())


def _add(builder: StepBuilder, record: Fields, name: str, role: Role) -> None:
    """Add the messages of a prompt or a completion; `role` is that of a text."""
    if isinstance(record.value.get(name), list):
        for message in record.objects(name):
            given = name == "prompt" and message.value.get("role") == "assistant"
            openai.add(builder, message, failures.generic, weight=0.0 if given else None)
        return
    text = record.take(name, str)
    builder.add(name, at(name, lambda: Message(role, text)))
