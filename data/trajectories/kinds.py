"""The kind of every token of a rendered trajectory, which determines its loss weight.

Kinds follow from the structure: the chat format gives the kind and the call of each span, and the trajectory gives the
failed calls. Neither tokens nor texts are searched.
"""

import enum
import itertools
from collections.abc import Iterable

import numpy as np

from data.trajectories.actions import Action, find_actions
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError
from maverick_jax.reasoning import Mark
from maverick_jax.text.chat import Kind, Rendered, Role, Span
from maverick_jax.text.chat.reply import THINKING
from maverick_jax.text.chat.spans import MARKS


class TokenKind(enum.IntEnum):
    """Kind of a token. The numbers are stored in data: never change them, and give a new kind a new number."""

    HEADER = 0
    """Control tokens that the assistant does not generate, names of roles, and the empty line after them."""
    SYSTEM = 1
    TOOLS = 2
    """The declaration of the tools."""
    USER = 3
    IMAGE = 4
    OBSERVATION = 5
    """The result of a successful call."""
    OBSERVATION_ERROR = 6
    """The result of a failed call."""
    THOUGHT = 7
    """The assistant's reasoning, and its text before calls."""
    DECISION = 8
    """The first token of an assistant turn after its thought, which decides whether it calls, answers or asks."""
    TEXT = 9
    """The assistant's text in a message without calls, except the final answer."""
    FINAL_ANSWER = 10
    """The assistant's text in its last message, if that has no calls."""
    CALL_SYNTAX = 11
    CALL_NAME = 12
    CALL_ARGUMENTS = 13
    FAILED_ACTION = 14
    """Syntax, name, arguments and decision of a call whose result is an error."""
    RECOVERY = 15
    """Syntax, name, arguments and decision of a call that recovers a failed one."""
    CONTROL = 16
    """Control tokens that the assistant generates: around thoughts and calls, and the one that ends its turn."""
    DOCUMENT = 17
    """Tokens of a text that is not a trajectory, in data with both."""
    LATENT = 18
    """Places of latent thoughts, and the end of a thought that only has those: a program writes them, not the model."""


CONTEXT = (TokenKind.HEADER, TokenKind.SYSTEM, TokenKind.TOOLS, TokenKind.USER, TokenKind.IMAGE, TokenKind.OBSERVATION,
           TokenKind.OBSERVATION_ERROR, TokenKind.LATENT)  # fmt: skip
"""Kinds of the tokens that the assistant reads but does not generate."""
_SAME = {
    Kind.HEADER: TokenKind.HEADER, Kind.SYSTEM: TokenKind.SYSTEM, Kind.TOOLS: TokenKind.TOOLS,
    Kind.USER: TokenKind.USER, Kind.IMAGE: TokenKind.IMAGE, Kind.THOUGHT: TokenKind.THOUGHT,
    Kind.CALL_SYNTAX: TokenKind.CALL_SYNTAX, Kind.CALL_NAME: TokenKind.CALL_NAME,
    Kind.CALL_ARGUMENTS: TokenKind.CALL_ARGUMENTS, Kind.LATENT: TokenKind.LATENT,
}  # fmt: skip
_OF_CALLS = (Kind.CALL_SYNTAX, Kind.CALL_NAME, Kind.CALL_ARGUMENTS)
_CallKinds = dict[tuple[int, int], TokenKind]
"""(message, call) -> FAILED_ACTION or RECOVERY; call -1 holds the kind shared by all calls of the message."""


def token_kinds(trajectory: Trajectory, rendered: Rendered) -> np.ndarray:
    """uint8[T]: TokenKind of each token of `rendered`, the rendered `trajectory.conversation`.

    Raises InputError if the roles of the two do not match.
    """
    _require_same(trajectory, rendered)
    call_kinds = _call_kinds(find_actions(trajectory))
    final = _final_answer(trajectory)
    kinds = np.zeros(len(rendered.ids), np.uint8)
    for span in rendered.spans:
        if span.begin < span.end:
            written = bool(rendered.written[span.begin])
            kinds[span.begin : span.end] = _kind(span, written, trajectory, call_kinds, final)
    for before, span in itertools.pairwise(rendered.spans):
        if before.kind is Kind.LATENT and span.kind is Kind.CONTROL:
            kinds[span.begin : span.end] = TokenKind.LATENT
    for message, at in decisions(rendered).items():
        kinds[at] = call_kinds.get((message, -1), TokenKind.DECISION)
    return kinds


def marks_of(kinds: np.ndarray) -> np.ndarray:
    """uint8[T]: Mark of each token, from its TokenKind."""
    table = np.full(256, Mark.NONE, np.uint8)
    for kind, mark in MARKS.items():
        table[_SAME[kind]] = mark
    return table[kinds]


def decisions(rendered: Rendered) -> dict[int, int]:
    """Index of each assistant message -> index of its decision token: the first token that it generates, or the first
    after its thought if it begins with one."""
    begin, end = THINKING
    found: dict[int, int] = {}
    thinking = False
    for span in rendered.spans:
        if span.begin == span.end or span.message in found or not rendered.written[span.begin]:
            continue
        control = span.text if span.kind is Kind.CONTROL else None
        if thinking or control == begin:
            thinking = control != end
        else:
            found[span.message] = span.begin
    return found


def _kind(span: Span, written: bool, trajectory: Trajectory, call_kinds: _CallKinds, final: int) -> TokenKind:
    if span.kind is Kind.CONTROL:
        return TokenKind.CONTROL if written else TokenKind.HEADER
    if span.kind is Kind.RESULT:
        return TokenKind.OBSERVATION_ERROR if trajectory.steps[span.message].error else TokenKind.OBSERVATION
    if span.kind is Kind.TEXT:
        return TokenKind.FINAL_ANSWER if span.message == final else TokenKind.TEXT
    if span.kind in _OF_CALLS:
        return call_kinds.get((span.message, span.call), _SAME[span.kind])
    return _SAME[span.kind]


def _call_kinds(actions: Iterable[Action]) -> _CallKinds:
    """The kinds of failed calls and recoveries. A failed call is never a recovery."""
    of_message: dict[int, list[TokenKind | None]] = {}
    found: _CallKinds = {}
    for action in actions:
        kind = TokenKind.FAILED_ACTION if action.failed else TokenKind.RECOVERY if action.recovers else None
        of_message.setdefault(action.step, []).append(kind)
        if kind is not None:
            found[action.step, action.position] = kind
    for message, kinds in of_message.items():
        if len(set(kinds)) == 1 and kinds[0] is not None:
            found[message, -1] = kinds[0]
    return found


def _final_answer(trajectory: Trajectory) -> int:
    """Index of the assistant's last message if it has no calls; else -2, which is not an index of a message."""
    own = [i for i, step in enumerate(trajectory.steps) if step.message.role is Role.ASSISTANT]
    return own[-1] if own and not trajectory.steps[own[-1]].message.calls else -2


def _require_same(trajectory: Trajectory, rendered: Rendered) -> None:
    roles = dict(zip(rendered.messages.tolist(), rendered.roles.tolist(), strict=True))
    roles.pop(-1, None)
    if [roles.get(i) for i in range(len(roles))] != [step.message.role for step in trajectory.steps]:
        raise InputError("trajectory: the rendered conversation has other messages")
