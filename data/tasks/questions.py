"""The task kind `questions`: questions with known answers from a file of JSON lines."""

import pathlib
from typing import Any, Literal

from data.graders.base import Grade
from data.graders.matching import exact, number_in, numeric
from data.tasks.base import Example, Task, TaskInfo
from data.trajectories.files import Record, read_records
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text.chat import Conversation, Message, Reply, Role, from_openai

FIELDS = ("prompt", "answer", "id")


class Questions(Task):
    """`kind: questions`: a file of JSON lines, each `{"prompt": ..., "answer": ...}`."""

    kind: Literal["questions"] = "questions"
    """Questions from a file."""
    path: str
    """A file of JSON lines. `prompt`: a text, or a list of messages in the format of OpenAI's chat API; `answer`: a
    correct answer (text or number), or a list of them; `id` (optional): a name for reports."""
    match: Literal["exact", "numeric"] = "exact"
    """`exact`: the answer must equal a reference, except for white space; `numeric`: its last number must equal one."""
    chat: bool = True
    """true: a text prompt is the user's message, and the assistant's message is the answer. false: the model continues
    the text, and the first line that it writes is the answer."""
    source: str = "unknown"
    """Source of the questions, for reports."""
    license: str = "unknown"
    """License of the questions, for reports."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo(self.source, self.license)

    def examples(self) -> list[Example]:
        path = pathlib.Path(self.path).expanduser()
        if not path.is_file():
            names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise InputError(f"{path}: no such file{did_you_mean(path.name, names)}")
        found: dict[str, Example] = {}
        for record in read_records(path):
            where = f"{path}: line {record.line}" if record.line else f"{path}: record {record.number}"
            example = self._example(record, where)
            if example.id in found:
                raise InputError(f"{where}: id: {example.id[:80]!r} is already the id of an earlier line")
            found[example.id] = example
        return list(found.values())

    def _example(self, record: Record, where: str) -> Example:
        try:
            value = record.load()
            if not isinstance(value, dict):
                raise InputError(f"expected an object with `prompt` and `answer`, got {type(value).__name__}")
            for name in value:
                if name not in FIELDS:
                    raise InputError(f"{name[:80]!r}: unknown field{did_you_mean(name, FIELDS)}")
            missing = [name for name in FIELDS[:2] if value.get(name) is None]
            if missing:
                raise InputError(f"{missing[0]}: is missing")
            return Example(_id(value, record), self._prompt(value["prompt"]), self._references(value["answer"]))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def _prompt(self, given: Any) -> str | Conversation:
        if isinstance(given, list):
            if not self.chat:
                raise InputError("prompt: a list of messages needs `chat: true`")
            return from_openai(given)
        if not isinstance(given, str) or not given.strip():
            raise InputError(f"prompt: expected a text or a list of messages, got {given!r:.80}")
        return Conversation((Message(Role.USER, given),)) if self.chat else given

    def _references(self, given: Any) -> tuple[str, ...]:
        answers = given if isinstance(given, list) else [given]
        if not answers:
            raise InputError("answer: empty list; expected at least one answer")
        for answer in answers:
            if isinstance(answer, bool) or not isinstance(answer, str | int | float):
                raise InputError(f"answer: expected a text or a number, got {answer!r:.80}")
            if self.match == "numeric" and number_in(str(answer)) is None:
                raise InputError(f"answer: {answer!r:.80} contains no number; `match: numeric` requires one")
        return tuple(map(str, answers))

    def grade(self, example: Example, reply: Reply) -> Grade:
        text = reply.text.strip()
        if not self.chat:
            text = text.partition("\n")[0]
        return (exact if self.match == "exact" else numeric)(text, example.references)


def _id(value: dict[str, Any], record: Record) -> str:
    given = value.get("id", record.number)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise InputError(f"id: expected a text or a whole number, got {given!r:.80}")
    return str(given)
