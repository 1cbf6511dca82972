"""Multiple choice in the form of MMLU: tables with a question, its choices and the number of the right one."""

import collections
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from data.graders.base import Grade
from data.graders.choices import LETTERS, grade_letter
from data.graders.figures import Figure, figure
from data.tasks.base import Example, Graded, Task, TaskInfo
from data.tasks.prompts import Shots, chat_prompt, lettered, text_prompt
from data.tasks.reading import Row, existing, files_in, json_rows, table_rows
from maverick_jax.text.chat import Reply

ASK = "Choose the right answer. End your reply with the line `Answer: X`, where X is the letter of your choice."


class MultipleChoice(Task):
    """`kind: multiple_choice`: questions with lettered choices."""

    kind: Literal["multiple_choice"] = "multiple_choice"
    """Multiple choice, such as MMLU."""
    path: str
    """A table (`.csv` with the columns question, choice0, choice1, ..., answer), JSON lines (question, choices,
    answer), or a folder of such files, one per subject. `answer`: the number of the right choice, from 0, or its
    letter. The subject is the file's name without `_test`."""
    shots_path: str | None = None
    """The same for worked examples; those of a subject are in the file `SUBJECT_dev` or `SUBJECT`. null: no shots."""
    shots: Annotated[int, Field(ge=0)] = 5
    """Number of worked examples before each question, from the first on."""
    how: Literal["likelihood", "generate"] = "likelihood"
    """`likelihood`: the likeliest letter after the question is the answer; `generate`: the model writes its answer."""
    chat: bool = False
    """true: the question is the user's message. false: the model continues a text, as base models do it."""
    source: str = "unknown"
    """Source of the questions, for reports."""
    license: str = "unknown"
    """License of the questions, for reports."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo(self.source, self.license)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return () if self.chat else ("\n\n",)

    def examples(self) -> list[Example]:
        return list(self._examples())

    def _examples(self) -> Iterator[Example]:
        for path in files_in(self.path, ".csv", ".jsonl"):
            subject = _subject(path)
            shots = self._shots(subject)
            for question in map(_question, _rows(path)):
                yield self._example(f"{subject} {question.number}", subject, question, shots)

    def _example(self, name: str, subject: str, question: "_Question", shots: list["_Question"]) -> Example:
        asked = [(shot.text, f"Answer: {LETTERS[shot.right]}") for shot in shots]
        choices = tuple(LETTERS[: question.count]) if self.how == "likelihood" else ()
        facts = {"subject": subject, "right": question.right, "count": question.count}
        references = (str(question.right),)
        if self.chat:
            lead = f"{ASK}\n\n" if self.how == "generate" else "Answer with the letter of the right choice alone.\n\n"
            answered = [(lead + text, answer if self.how == "generate" else answer[-1]) for text, answer in asked]
            return Example(name, chat_prompt(lead + question.text, answered), references, choices, facts=facts)
        intro = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}."
        continued: Shots = [(f"{text}\nAnswer:", answer.removeprefix("Answer:")) for text, answer in asked]
        prompt = text_prompt(f"{question.text}\nAnswer:", continued, intro)
        return Example(name, prompt, references, tuple(f" {choice}" for choice in choices), facts=facts)

    def _shots(self, subject: str) -> list["_Question"]:
        if self.shots_path is None or self.shots == 0:
            return []
        path = existing(self.shots_path)
        if path.is_dir():
            names = [path / f"{subject}{part}{ending}" for part in ("_dev", "") for ending in (".csv", ".jsonl")]
            path = next((name for name in names if name.is_file()), None) or existing(str(names[0]))
        return [_question(row) for row in _rows(path)][: self.shots]

    def grade(self, example: Example, reply: Reply) -> Grade:
        text = reply.text if self.chat else f"Answer:{reply.text.partition(chr(10))[0]}"
        return grade_letter(text, example.facts["right"], example.facts["count"])

    def figures(self, graded: Sequence[Graded]) -> dict[str, Figure]:
        """The score of each subject, if there are several; and the mean over subjects."""
        scores: dict[str, list[float]] = collections.defaultdict(list)
        for one in graded:
            scores[one.example.facts["subject"]].append(one.grade.score)
        found = {f"subject {name}": figure(values) for name, values in scores.items()}
        return found if len(found) > 1 else {}


class _Question:
    """A question as it is shown: the text with lettered choices, and the number of the right one."""

    def __init__(self, number: int, question: str, choices: Sequence[str], right: int):
        self.number, self.count, self.right = number, len(choices), right
        self.text = f"{question.strip()}\n{lettered(choices)}"


def _rows(path: pathlib.Path) -> Iterator[Row]:
    return table_rows(path, ",") if path.name.endswith(".csv") else json_rows(path)


def _subject(path: pathlib.Path) -> str:
    return re.sub(r"(?:_test)?\.(?:csv|jsonl)$", "", path.name)


def _question(row: Row) -> _Question:
    if "choices" in row.values:
        choices = [row.of(choice, str, "choices") for choice in row.get("choices", list)]
    else:
        choices = [row.get(f"choice{i}", str) for i in range(len(LETTERS)) if i < 2 or f"choice{i}" in row.values]
    if not 2 <= len(choices) <= len(LETTERS):
        raise row.refuse("choices", f"{len(choices)}; expected 2 to {len(LETTERS)}")
    right = str(row.values.get("answer", "")).strip()
    known = [str(i) for i in range(len(choices))]
    if right in LETTERS[: len(choices)] and len(right) == 1:
        right = str(LETTERS.index(right))
    if right not in known:
        raise row.refuse("answer", f"{right!r:.40}; expected the number of a choice, 0 to {len(choices) - 1}")
    return _Question(row.number, row.get("question", str), choices, int(right))
