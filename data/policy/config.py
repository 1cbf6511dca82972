"""A policy file: what each tool may do, independent of any model."""

import pathlib
from collections.abc import Iterable
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from data.sources.files import PACKAGE, shipped_file
from maverick_jax.errors import InputError
from maverick_jax.settings import strict_yaml, validation
from maverick_jax.settings.section import Section, did_you_mean

ANY = "*"
"""In a transition: any tool."""
MOST_PRIVILEGE = 4
Score = Annotated[float, Field(ge=0, le=1)]
Privilege = Annotated[int, Field(ge=0, le=MOST_PRIVILEGE)]
Text = Annotated[str, Field(min_length=1)]


class ToolRule(Section):
    """What one tool may do."""

    privilege: Privilege = 0
    """0: reads what is public; 1: reads what is private; 2: changes the user's own objects, and can be undone; 3: pays,
    or cannot be undone; 4: concerns others, or administers."""
    labels: tuple[Text, ...] = ()
    """Names for groups of tools, for `transitions`."""
    scope: dict[str, Literal["said", "owned"]] = {}
    """Argument -> which objects it may name. `said`: those that the user, the system message or a trusted result has
    named; `owned`: those that a result about the `principal` names."""
    confirm: bool | tuple[Text, ...] = False
    """Whether the user must agree before the call: the user's last message says yes, and the assistant's message before
    it named all arguments (true) or these arguments. An empty list: a yes alone is enough."""
    after: tuple[Text, ...] = ()
    """Tools that must have been called before with success; arguments that both have must be equal."""
    trusted: tuple[Text, ...] = ()
    """Arguments whose value must not come from a result alone."""
    terminal: bool = False
    """Whether the task is over once the tool was called with success."""


class Transitions(Section):
    """Which tools' results may not reach which calls."""

    deny: tuple[tuple[Text, Text], ...] = ()
    """Pairs of a source and a target: tools, labels or `*`. A call of the target may not contain an identifier that it
    has from a result of the source."""


class Principal(Section):
    """The user on whose behalf the agent acts."""

    tool: Text
    """A tool that reads the user's data."""
    argument: Text
    """Its argument that identifies the user."""


class ToolPolicy(Section):
    """A policy file. Tools that it does not name are not granted."""

    tools: Annotated[dict[str, ToolRule], Field(min_length=1)]
    """Rules by tool."""
    granted: Privilege = 2
    """The highest privilege of calls that need no confirmation; above it, a call needs one as with `confirm: true`."""
    transitions: Transitions = Transitions()
    """Which tools' results may not reach which calls."""
    thresholds: Annotated[tuple[Score, ...], Field(min_length=5, max_length=5)] = (1.0, 0.9, 0.5, 0.2, 0.05)
    """For privileges 0 to 4, the least risk at which a guard holds a call back: up to 3 until the user agrees, at 4 for
    good. They must not rise."""
    trusts: tuple[Text, ...] = ()
    """Tools whose results are as good as the user's word, such as the operator's own records."""
    principal: Principal | None = None
    """The user, for `scope: owned`."""
    yes: tuple[Text, ...] = ("yes", "yeah", "yep", "sure", "ok", "okay", "please do", "go ahead", "do that", "do it",
                             "proceed", "confirm", "i agree", "i confirm", "correct", "that works")  # fmt: skip
    """Words by which a user agrees."""
    no: tuple[Text, ...] = ("no", "not", "don't", "do not", "never", "stop", "wait", "instead", "unless")
    """Words that make it no agreement."""

    @pydantic.model_validator(mode="after")
    def _names_what_is_there(self):
        labels = {label for rule in self.tools.values() for label in rule.labels}
        for i, pair in enumerate(self.transitions.deny):
            _known(pair, {*self.tools, *labels, ANY}, f"transitions.deny.{i}")
        _known(self.trusts, self.tools, "trusts")
        if list(self.thresholds) != sorted(self.thresholds, reverse=True):
            raise ValueError(f"thresholds: {', '.join(f'{x:g}' for x in self.thresholds)} rise; scrutiny must not fall "
                             "with privilege")  # fmt: skip
        for name, rule in self.tools.items():
            _known(rule.after, self.tools, f"tools.{name}.after")
            if "owned" in rule.scope.values() and self.principal is None:
                raise ValueError(f"tools.{name}.scope: owned requires `principal`, and there is none")
        if self.principal is not None:
            _known([self.principal.tool], self.tools, "principal.tool")
        return self


def _known(names: Iterable[str], known: Iterable[str], key: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: no tool {name!r:.80}{did_you_mean(name, known)}")


def read_policy(path: str) -> ToolPolicy:
    """The policy in a YAML file, or in the shipped one `package:NAME`. Raises InputError with one line per problem."""
    if path.startswith(PACKAGE):
        file = shipped_file(path.removeprefix(PACKAGE))
    else:
        file = pathlib.Path(path).expanduser()
    if not file.is_file():
        near = did_you_mean(file.name, [p.name for p in file.parent.iterdir()]) if file.parent.is_dir() else ""
        raise InputError(f"policy: {path}: no such file{near}")
    document = strict_yaml.read(file)
    if not isinstance(document.data, dict):
        raise InputError(f"{file}: expected a mapping with `tools`")
    return validation.validate(ToolPolicy, document)
