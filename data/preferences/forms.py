"""The forms of pair files: each turns a record into records of known trajectory formats, one per side, which the
readers of `data.trajectories.formats` read.

Forms are those of TRL (`chosen` and `rejected`, texts or messages), HH (two transcripts), ShareGPT, ms-swift, verdicts
on single answers, and our own.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from data.trajectories.formats import ours
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean

FORMAT, VERSION = "maverick-pair", 1
SCORES = (
    "chosen_score",
    "rejected_score",
    "score_chosen",
    "score_rejected",
    "chosen_rating",
    "rejected_rating",
    "margin",
)
"""Numbers that some files have for each side. No loss reads them; they are counted as left out."""
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
Record = dict[str, Any]


class Side(NamedTuple):
    """A side as a record of a trajectory format."""

    format: str
    record: Record


@dataclasses.dataclass(frozen=True)
class Sides:
    """A pair before its sides are read."""

    chosen: Side | None
    rejected: Side | None
    task: str = ""
    origin: str = ""
    left_out: tuple[str, ...] = ()
    """Fields of the record that nothing reads."""


@dataclasses.dataclass(frozen=True)
class PairForm:
    name: str
    needs: str
    """Description of the fields that identify a record, for messages."""
    matches: Callable[[Record], bool]
    read: Callable[[Record], Sides]
    """Raises InputError beginning with the field."""


def _rest(record: Record, *taken: str) -> tuple[Record, dict[str, Any]]:
    """The fields that both sides share, and the arguments of `Sides` besides them."""
    left_out = tuple(name for name in SCORES if name in record)
    rest = {name: value for name, value in record.items() if name not in {*taken, *left_out, "task", "task_id"}}
    task = record.get("task_id") if record.get("task") is None else record["task"]
    return rest, {"task": "" if task is None else str(task), "left_out": left_out}


def _both(record: Record, make: Callable[[str], Side], *taken: str) -> Sides:
    """`make(name)` for both sides, to whose records the shared fields are added."""
    rest, more = _rest(record, "chosen", "rejected", *taken)
    side = lambda name: (lambda made: Side(made.format, rest | made.record))(make(name))
    return Sides(side("chosen"), side("rejected"), **more)


def _is_text(record: Record, *names: str) -> bool:
    return all(isinstance(record.get(name), str) for name in names)


def _are_messages(value: Any, key: str = "role") -> bool:
    return isinstance(value, list) and all(isinstance(message, dict) and key in message for message in value)


# ---- TRL ---------------------------------------------------------------------------------------------------------


def _trl(record: Record) -> Sides:
    """`prompt`, `chosen`, `rejected`: texts or messages. Without a prompt, both sides are whole conversations. So they
    are if they repeat a prompt that is a text."""
    prompt = record.get("prompt")
    if prompt is None or (isinstance(prompt, str) and _repeats(record["chosen"], prompt)):
        if not _are_messages(record["chosen"]) or not _are_messages(record["rejected"]):
            raise InputError("chosen: a text without a prompt; expected `prompt` too, messages, or a transcript that "
                             "begins with two line breaks and `Human:`")  # fmt: skip
        return _both(record, lambda name: Side("openai", {"messages": record[name]}), "prompt")
    make = lambda name: Side("prompt_completion", {"prompt": prompt, "completion": record[name]})
    return _both(record, make, "prompt")


def _repeats(side: Any, prompt: str) -> bool:
    said = [m.get("content") for m in side if m["role"] == "user"] if _are_messages(side) else []
    return bool(said) and said[0] == prompt


# ---- HH ----------------------------------------------------------------------------------------------------------


def _hh(record: Record) -> Sides:
    return _both(record, lambda name: Side("openai", {"messages": transcript(record[name], name)}))


def transcript(text: str, where: str) -> list[dict[str, str]]:
    """The messages of a text with `Human:` and `Assistant:` after empty lines. Raises InputError beginning with `where`
    for a text that begins with something else."""
    parts = _SPEAKER.split(text)
    if parts[0].strip():
        raise InputError(f"{where}: {parts[0].strip()[:40]!r} stands before the first `Human:`")
    return [
        {"role": _ROLES[name], "content": said.strip()} for name, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


# ---- ShareGPT ----------------------------------------------------------------------------------------------------


def _sharegpt(record: Record) -> Sides:
    """`conversations` that both sides share, and `chosen` and `rejected`, each a turn or a list of turns."""
    turns = record["conversations"]

    def make(name: str) -> Side:
        last = record[name] if isinstance(record[name], list) else [record[name]]
        if not _are_messages(last, "from"):
            raise InputError(f"{name}: expected an object with `from` and `value`, or a list of these")
        return Side("sharegpt", {"conversations": [*turns, *last]})

    return _both(record, make, "conversations")


# ---- ms-swift ----------------------------------------------------------------------------------------------------


def _ms_swift(record: Record) -> Sides:
    """`messages`, which end with the chosen answer, and `rejected_response` (a text or messages) in the place of what
    follows the last user message, or `rejected_messages`, a whole conversation."""
    chosen = record["messages"]
    if not _are_messages(chosen):
        raise InputError("messages: expected a list of objects with `role`")
    rejected = record.get("rejected_messages") or _answered(chosen, record["rejected_response"])
    rest, more = _rest(record, "messages", "rejected_messages", "rejected_response", "rejected_tools", "tools")
    tools, others = record.get("tools"), record.get("rejected_tools") or record.get("tools")
    named = lambda tools: {} if tools is None else {"tools": tools}
    return Sides(_swift_side(chosen, rest | named(tools)), _swift_side(rejected, rest | named(others)), **more)


def _answered(chosen: list[Record], answer: Any) -> list[Record]:
    if isinstance(answer, str):
        if chosen[-1]["role"] != "assistant":
            raise InputError(f"messages: the last role is {chosen[-1]['role']!r:.40}; expected assistant, whose "
                             "message rejected_response replaces")  # fmt: skip
        return [*chosen[:-1], {**chosen[-1], "content": answer}]
    if not _are_messages(answer):
        raise InputError("rejected_response: expected a text or a list of objects with `role`")
    users = [i for i, message in enumerate(chosen) if message["role"] == "user"]
    return [*chosen[: users[-1] + 1 if users else 0], *answer]


def _swift_side(messages: list[Record], rest: Record) -> Side:
    """ms-swift writes calls and results as messages of their own, as ShareGPT does."""
    if not any(message["role"] in ("tool_call", "tool_response") for message in messages):
        return Side("openai", {"messages": messages, **rest})
    renamed = lambda m: {("from" if k == "role" else "value" if k == "content" else k): v for k, v in m.items()}
    return Side("sharegpt", {"conversations": [renamed(message) for message in messages], **rest})


# ---- verdicts and our own ----------------------------------------------------------------------------------------


def _unpaired(record: Record) -> Sides:
    """`prompt`, `completion` and `label` (TRL), or `conversations` and `kto_tag` (ShareGPT): an answer that is good
    (true) or bad."""
    key = "kto_tag" if "kto_tag" in record else "label"
    if type(good := record[key]) is not bool:
        raise InputError(f"{key}: {good!r:.40}; expected true or false")
    rest, more = _rest(record, key)
    side = Side("sharegpt" if "conversations" in rest else "prompt_completion", rest)
    return Sides(side if good else None, None if good else side, **more)


def _ours(record: Record) -> Sides:
    """`prompt` and `tools` that both sides share, and `chosen` and `rejected`: messages with the annotations of our
    format of trajectories. One side may be missing."""
    if (version := record.get("version")) != VERSION:
        raise InputError(f"version: {version!r:.40}; expected {VERSION}")
    known = ("format", "version", "tools", "prompt", "chosen", "rejected", "task", "origin")
    if unknown := [name for name in record if name not in known]:
        raise InputError(f"{unknown[0]:.80}: unknown field{did_you_mean(unknown[0][:80], known)}")
    for name in ("task", "origin"):
        if not isinstance(record.get(name, ""), str):
            raise InputError(f"{name}: expected a text")
    for name in ("prompt", "chosen", "rejected"):
        if not _are_messages(record.get(name) or []):
            raise InputError(f"{name}: expected a list of objects with `role`")

    def side(name: str) -> Side | None:
        if record.get(name) is None:
            return None
        messages = [*(record.get("prompt") or []), *record[name]]
        return Side("ours", {"format": ours.FORMAT, "version": ours.VERSION, "tools": record.get("tools", []),
                             "messages": messages})  # fmt: skip

    return Sides(side("chosen"), side("rejected"), record.get("task", ""), record.get("origin", ""))


_PAIR = "`chosen` and `rejected`"
FORMS = {
    form.name: form
    for form in (
        PairForm("ours", f'`format`: "{FORMAT}"', lambda r: r.get("format") == FORMAT, _ours),
        PairForm("sharegpt", f"`conversations`, {_PAIR}", lambda r: "chosen" in r and "rejected" in r
             and _are_messages(r.get("conversations"), "from"), _sharegpt),
        PairForm("hh", f"{_PAIR}, texts that begin with two line breaks and `Human:`", lambda r: "prompt" not in r
             and _is_text(r, "chosen", "rejected") and all(_SPEAKER.match(r[s]) for s in ("chosen", "rejected")), _hh),
        PairForm("trl", f"{_PAIR}, with or without `prompt`", lambda r: "chosen" in r and "rejected" in r, _trl),
        PairForm("ms_swift", "`messages` with `rejected_response` or `rejected_messages`", lambda r: "messages" in r
             and bool(r.get("rejected_response") or r.get("rejected_messages")), _ms_swift),
        PairForm("unpaired", "`prompt`, `completion` and `label`, or `conversations` and `kto_tag`", lambda r:
             "kto_tag" in r or ("completion" in r and "label" in r), _unpaired),
    )
}  # fmt: skip


def detect(record: Any) -> PairForm:
    """The form of `record`, by its fields. Raises InputError that lists the forms tried."""
    for form in FORMS.values():
        if isinstance(record, dict) and form.matches(record):
            return form
    tried = "; ".join(f"{form.name}: {form.needs}" for form in FORMS.values())
    has = ", ".join(f"{name!r:.40}" for name in list(record)[:12]) if isinstance(record, dict) else "no object"
    raise InputError(f"not a pair: it has {has or 'no fields'}. Tried {tried}. Pairs are made of trajectories with "
                     "preferences.make: outcomes, corruptions or violations")  # fmt: skip
