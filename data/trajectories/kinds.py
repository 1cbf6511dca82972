"""What every token of a rendered run is, as far as learning from it goes: one kind each.

Known from how the run was written: the chat format says what each span is and which call it writes, the run says which
calls failed. Nothing is looked for in tokens or texts.
"""

import enum
from collections.abc import Iterable

import numpy as np

from data.trajectories.actions import Action, find_actions
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Kind, Rendered, Role, Span
from maverick_jax.text.chat.reply import THINKING


class TokenKind(enum.IntEnum):
    """The numbers are stored in data: give new kinds new ones and leave these as they are."""

    HEADER = 0
    """Control tokens that no assistant writes, names of roles, the empty line after them."""
    SYSTEM = 1
    TOOLS = 2
    """The declaration of the tools."""
    USER = 3
    IMAGE = 4
    OBSERVATION = 5
    """What a tool gave back."""
    OBSERVATION_ERROR = 6
    THOUGHT = 7
    """What the assistant thinks, and what it says before its calls."""
    DECISION = 8
    """The first token of an assistant's turn after its thought: whether it calls, answers or asks."""
    TEXT = 9
    """What the assistant says in a message without calls that is not the run's last."""
    FINAL_ANSWER = 10
    """What it says in its last message, if that has no calls."""
    CALL_SYNTAX = 11
    CALL_NAME = 12
    CALL_ARGUMENTS = 13
    FAILED_ACTION = 14
    """A call whose result is an error: its syntax, name and arguments, and the decision for it."""
    RECOVERY = 15
    """The same of a call that makes good a failed one."""
    CONTROL = 16
    """Control tokens that the assistant writes: around thoughts and calls, and the one that ends its turn."""
    DOCUMENT = 17
    """Of a text that is no run, where data has both."""


CONTEXT = (TokenKind.HEADER, TokenKind.SYSTEM, TokenKind.TOOLS, TokenKind.USER, TokenKind.IMAGE, TokenKind.OBSERVATION,
           TokenKind.OBSERVATION_ERROR)  # fmt: skip
"""What the assistant reads."""
_SAME = {
    Kind.HEADER: TokenKind.HEADER, Kind.SYSTEM: TokenKind.SYSTEM, Kind.TOOLS: TokenKind.TOOLS,
    Kind.USER: TokenKind.USER, Kind.IMAGE: TokenKind.IMAGE, Kind.THOUGHT: TokenKind.THOUGHT,
    Kind.CALL_SYNTAX: TokenKind.CALL_SYNTAX, Kind.CALL_NAME: TokenKind.CALL_NAME,
    Kind.CALL_ARGUMENTS: TokenKind.CALL_ARGUMENTS,
}  # fmt: skip
_OF_CALLS = (Kind.CALL_SYNTAX, Kind.CALL_NAME, Kind.CALL_ARGUMENTS)
_Fates = dict[tuple[int, int], TokenKind]
"""FAILED_ACTION or RECOVERY by message and call; call -1 stands for all calls of the message, where they share it."""


def token_kinds(trajectory: Trajectory, rendered: Rendered) -> np.ndarray:
    """uint8[T]: TokenKind of each token of `rendered`, which `trajectory.conversation` was rendered to.

    Raises InputError where it was rendered from another conversation, as far as that can be seen.
    """
    _require_same(trajectory, rendered)
    fates = _fates(find_actions(trajectory))
    final = _final_answer(trajectory)
    kinds = np.zeros(len(rendered.ids), np.uint8)
    for span in rendered.spans:
        if span.begin < span.end:
            kinds[span.begin : span.end] = _kind(span, bool(rendered.written[span.begin]), trajectory, fates, final)
    for message, at in decisions(rendered).items():
        kinds[at] = fates.get((message, -1), TokenKind.DECISION)
    return kinds


def decisions(rendered: Rendered) -> dict[int, int]:
    """Of each assistant's message, the index of the token that decides what it does: the first that it writes, or the
    first after its thought if it begins with one."""
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


def _kind(span: Span, written: bool, trajectory: Trajectory, fates: _Fates, final: int) -> TokenKind:
    if span.kind is Kind.CONTROL:
        return TokenKind.CONTROL if written else TokenKind.HEADER
    if span.kind is Kind.RESULT:
        return TokenKind.OBSERVATION_ERROR if trajectory.steps[span.message].error else TokenKind.OBSERVATION
    if span.kind is Kind.TEXT:
        return TokenKind.FINAL_ANSWER if span.message == final else TokenKind.TEXT
    if span.kind in _OF_CALLS:
        return fates.get((span.message, span.call), _SAME[span.kind])
    return _SAME[span.kind]


def _fates(actions: Iterable[Action]) -> _Fates:
    """A call that failed is that, even where it is the same tool's as one that failed before."""
    of_message: dict[int, list[TokenKind | None]] = {}
    fates: _Fates = {}
    for action in actions:
        fate = TokenKind.FAILED_ACTION if action.failed else TokenKind.RECOVERY if action.recovers else None
        of_message.setdefault(action.step, []).append(fate)
        if fate is not None:
            fates[action.step, action.position] = fate
    for message, all_of_it in of_message.items():
        if len(set(all_of_it)) == 1 and all_of_it[0] is not None:
            fates[message, -1] = all_of_it[0]
    return fates


def _final_answer(trajectory: Trajectory) -> int:
    """Index of the assistant's last message, if it has no calls; else -2, which is no message's."""
    own = [i for i, step in enumerate(trajectory.steps) if step.message.role is Role.ASSISTANT]
    return own[-1] if own and not trajectory.steps[own[-1]].message.calls else -2


def _require_same(trajectory: Trajectory, rendered: Rendered) -> None:
    roles = dict(zip(rendered.messages.tolist(), rendered.roles.tolist(), strict=True))
    roles.pop(-1, None)
    if [roles.get(i) for i in range(len(roles))] != [step.message.role for step in trajectory.steps]:
        raise InputError("trajectory: the rendered conversation is another one: its messages differ")
