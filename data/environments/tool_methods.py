"""An environment made of a Python class whose public methods are the tools, as TRL's trainers take it.

The class is the user's code: a package of theirs subclasses `ToolMethodsConfig`, and a config that names the package
under `plugins` can then use its kind. Nothing that is read from data names code.
"""

import abc
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from data.environments.base import EnvironmentConfig, Feedback, Opening
from data.trajectories.trajectory import Outcome, Step
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, Tool, ToolCall, values

JSON_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array",
                              dict: "object"}  # fmt: skip
NOT_TOOLS = ("reset",)
"""Public methods that are no tools."""


class ToolMethodsConfig(EnvironmentConfig, abc.ABC):
    """The base of environments that are a class with tools as its public methods."""

    kind: str

    @abc.abstractmethod
    def instance(self) -> Any:
        """A new object of the class. Its public methods, but `reset`, are the tools: annotated parameters make the
        schema, the docstring's first paragraph describes the tool, and lines `name: text` under `Args:` its parameters.
        """

    @abc.abstractmethod
    def begin(self, instance: Any, seed: int) -> str:
        """Resets the object to the task of this seed, and returns the user's first message."""

    @abc.abstractmethod
    def reward(self, instance: Any, answer: str) -> float:
        """The reward of an episode, given the assistant's last message; 1 or more is success."""

    def make(self) -> "ToolMethods":
        return ToolMethods(self)


class ToolMethods:
    """One object per episode, which ends with the assistant's first message without a call."""

    def __init__(self, config: ToolMethodsConfig):
        """Raises InputError for a method that cannot be a tool."""
        self.config, self.name, self._object = config, config.kind, config.instance()
        methods = inspect.getmembers(self._object, inspect.ismethod)
        self._methods = {name: m for name, m in methods if not name.startswith("_") and name not in NOT_TOOLS}
        self.tools = tuple(tool_of(method) for method in self._methods.values())
        self._schemas = {tool.name: tool.parameters for tool in self.tools}

    def reset(self, seed: int) -> Opening:
        text = self.config.begin(self._object, seed)
        return Opening([Step(Message(Role.USER, text))], f"{self.name}-{seed}")

    def step(self, message: Message) -> Feedback:
        if message.calls:
            return Feedback([self._result(call) for call in message.calls])
        reward = float(self.config.reward(self._object, message.text))
        return Feedback(outcome=Outcome(reward, reward >= 1, "the assistant answered"))

    def _result(self, call: ToolCall) -> Step:
        """The result of any call, or a message of an error."""
        try:
            found = self._called(call)
            text = found if isinstance(found, str) else values.write(values.checked(found, "result"))
            return Step(Message(Role.TOOL, text, call_id=call.id))
        except Exception as error:  # of the tool, which the model should see
            said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            return Step(Message(Role.TOOL, f"Error: {said}", call_id=call.id), error=True)

    def _called(self, call: ToolCall) -> Any:
        if call.name not in self._methods:
            raise InputError(f"no function {call.name[:40]}; there are {', '.join(self._methods)}")
        schema = self._schemas[call.name]
        if wrong := misfit(call.arguments, schema):
            raise InputError(f"{call.name}: {wrong}")
        return self._methods[call.name](**call.arguments)


def tool_of(method: Callable) -> Tool:
    """A method as a tool. Raises InputError for a parameter without a type that JSON has."""
    hints, properties, required = typing.get_type_hints(method), {}, []
    described, of_parameters = _documented(inspect.getdoc(method) or "")
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InputError(f"{method.__qualname__}: parameter {name}; expected parameters with names")
        properties[name] = {"type": _json_type(hints.get(name), f"{method.__qualname__}: parameter {name}")}
        if name in of_parameters:
            properties[name]["description"] = of_parameters[name]
        if parameter.default is parameter.empty:
            required.append(name)
    return Tool(method.__name__, described, {"type": "object", "properties": properties, "required": required})


def misfit(arguments: typing.Mapping[str, Any], schema: typing.Mapping[str, Any]) -> str | None:
    """What is wrong with the arguments of a call; None: nothing."""
    properties = schema["properties"]
    if unknown := [name for name in arguments if name not in properties]:
        return f"no argument {unknown[0][:40]}; there are {', '.join(properties)}"
    if missing := [name for name in schema["required"] if name not in arguments]:
        return f"argument {missing[0]} is missing"
    for name, value in arguments.items():
        wanted = properties[name]["type"]
        found = next((JSON_TYPES[kind] for kind in JSON_TYPES if type(value) is kind), "null")
        if found != wanted and (found, wanted) != ("integer", "number"):
            return f"argument {name} is {found}; expected {wanted}"
    return None


def _json_type(hint: Any, where: str) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:  # `int | None` and the like
        hint = next((part for part in typing.get_args(hint) if part is not types.NoneType), None)
    plain = typing.get_origin(hint) or hint
    if plain not in JSON_TYPES:
        expected = ", ".join(kind.__name__ for kind in JSON_TYPES)
        raise InputError(f"{where}: its type is {hint!r:.60}; expected one of {expected}")
    return JSON_TYPES[plain]


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring, and the lines `name: text` or `name (type): text` under `Args:`."""
    first = " ".join(text.split("\n\n")[0].split())
    found: dict[str, str] = {}
    _, _, after = text.partition("Args:")
    for line in after.splitlines()[1:] if after else ():
        if line and not line[0].isspace():
            break
        name, colon, said = line.strip().partition(":")
        if colon and said.strip():
            found[name.split("(")[0].strip()] = said.strip()
    return first, found
