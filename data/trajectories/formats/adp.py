"""Reader of ADP, the agent data protocol (schema 1.x): `content`, a list of actions and observations."""

import itertools
from typing import Any

from data.trajectories import failures
from data.trajectories.builder import StepBuilder, at, tool_call
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.learned import take_weight
from data.trajectories.trajectory import Outcome, Provenance, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text.chat import Message, Role, ToolCall

NEEDS = "`content`, a list of objects with `class_`"
CALLS = ("api_action", "code_action")
SHELLS = ("bash", "sh", "shell")
CLASSES = (*CALLS, "message_action", "text_observation", "web_observation", "json_observation", "image_observation")


def matches(record: dict[str, Any]) -> bool:
    content = record.get("content")
    return isinstance(content, list) and (not content or (isinstance(content[0], dict) and "class_" in content[0]))


def read(record: Fields) -> Trajectory:
    """Read a record. Consecutive actions without an observation between them are parallel calls of one message, with
    the text of a message directly before them."""
    builder = StepBuilder()
    items = ((_class_of(item), item) for item in record.objects("content"))
    said: list[tuple[str, Fields]] = []  # a message, to which calls may belong
    for calling, group in itertools.groupby(items, key=lambda item: item[0] in CALLS):
        same = [*said, *group]
        said = [same.pop()] if not calling and same[-1][0] == "message_action" else []
        if calling:
            _add_calls(builder, same)
            continue
        for name, item in same:
            (_add_message if name == "message_action" else _add_observation)(builder, name, item)
    for name, item in said:
        _add_message(builder, name, item)
    tools = ()
    if any(isinstance(tool, dict) for tool in record.value.get("available_apis") or []):
        tools = openai.take_tools(record, "available_apis")
    record.keep("schema_version", "available_apis", "available_custom_tools", "available_code_languages", "details")
    name = record.take_label("id")
    return Trajectory(builder.finish(), tools, Outcome(), Provenance(id=name), record.rest())


def _class_of(item: Fields) -> str:
    name = item.take("class_", str)
    if name not in CLASSES:
        near = did_you_mean(name, CLASSES) if len(name) < 80 else ""
        raise InputError(f"{item.path('class_')}: {name!r:.80}; expected one of {', '.join(CLASSES)}{near}")
    if name == "image_observation":
        raise InputError(f"{item.path('class_')}: an image; chats with pictures are read by `kind: pictures`")
    return name


def _add_calls(builder: StepBuilder, items: list[tuple[str, Fields]]) -> None:
    calls: list[ToolCall] = []
    descriptions, thoughts, rewards, weights, extra = [], [], [], set(), {}
    for name, item in items:
        thoughts.append(item.take("reasoning_content", str, default=""))
        if name == "message_action":
            descriptions.append(item.take("content", str))
            thoughts[-1] = thoughts[-1] or item.take("description", str, default="")
            item.keep("description")
        else:
            calls.append(_call(name, item))
            descriptions.append(item.take("description", str, default=""))
        rewards.append(item.take("reward", float, default=None))
        weights.add(take_weight(item))
        if name == "code_action":
            item.add("class_", name)
        for key, value in item.rest().items():
            part = "message" if name == "message_action" else f"calls[{len(calls) - 1}]"
            extra[key if len(items) == 1 else f"{part}.{key}"] = value
    given = [reward for reward in rewards if reward is not None]
    where = items[0][1].where
    if len(weights) > 1:
        raise InputError(f"{where}: weight: parallel calls form one message and must have one weight")
    texts = ["\n".join(filter(None, found)) for found in (descriptions, thoughts)]
    message = at(where, lambda: Message(Role.ASSISTANT, texts[0], calls, texts[1]))
    builder.add(where, message, reward=sum(given) if given else None, weight=weights.pop(), extra=extra)


def _call(name: str, item: Fields) -> ToolCall:
    call_id = item.take("tool_call_id", str, default=None)
    if name == "api_action":
        function, arguments = item.take("function", str), item.take("kwargs", dict, default={})
    else:
        function = item.take("language", str)
        arguments = {"command" if function in SHELLS else "code": item.take("content", str)}
    return at(item.where, lambda: tool_call(function, arguments, call_id))


def _add_message(builder: StepBuilder, name: str, item: Fields) -> None:
    text, thought = item.take("content", str), item.take("reasoning_content", str, default="")
    if not thought:
        thought = item.take("description", str, default="")
    item.keep("description")
    reward = item.take("reward", float, default=None)
    message = at(item.where, lambda: Message(Role.ASSISTANT, text, (), thought))
    builder.add(item.where, message, reward=reward, weight=take_weight(item), extra=item.rest())


def _add_observation(builder: StepBuilder, name: str, item: Fields) -> None:
    """Add a tool result or a user or system message. It is a result if it has a `tool_call_id` or a call has no result
    yet, whatever its `source` is: older files give the user as the source of results."""
    text = _observed(name, item)
    call_id, source = item.take("tool_call_id", str, default=None), item.take("source", str, default="environment")
    notes: dict[str, Any] = {}
    if call_id is not None or builder.waiting():
        message = at(item.where, lambda: Message(Role.TOOL, text, call_id=call_id))
        notes["error"] = failures.is_error(item, text, failures.generic)
    else:
        role = Role.SYSTEM if source == "system" and not builder.steps else Role.USER
        message = at(item.where, lambda: Message(role, text))
    if source not in ("user", "environment"):
        item.add("source", source)
    builder.add(item.where, message, weight=take_weight(item), **notes, extra=item.rest())


def _observed(name: str, item: Fields) -> str:
    if name != "web_observation":
        item.keep("name")
        return item.take("content", str)
    item.keep("url", "viewport_size", "image_observation")
    tree, html = item.take("axtree", str, default=""), item.value.get("html")
    if tree:
        item.keep("html")
        return tree
    return item.take("html", str) if html else ""
