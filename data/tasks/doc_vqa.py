"""DocVQA: questions about pictures of documents, by average normalized Levenshtein similarity (ANLS)."""

from typing import Annotated, Literal

from pydantic import Field

from data.graders.base import Grade
from data.graders.documents import grade_anls
from data.tasks.base import Example, Task, TaskInfo
from data.tasks.chart_qa import picture
from data.tasks.prompts import chat_prompt
from data.tasks.reading import Row, existing, json_rows
from maverick_jax.text.chat import Reply

ASK = "{question}\n\nEnd your reply with the line `Answer: ...`, with the answer alone, in the words of the document."


class DocVqa(Task):
    """`kind: doc_vqa`: questions about documents."""

    kind: Literal["doc_vqa"] = "doc_vqa"
    """DocVQA."""
    path: str
    """A JSON object with a list `data`, or the list itself, or JSON lines, of `questionId`, `question`, `image` and
    `answers`, all of which are right."""
    images: str
    """The folder that `image` is relative to."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Maximum number of tokens in an answer."""
    license: str = "unknown"
    """License of the questions, for reports."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("DocVQA", self.license)

    def examples(self) -> list[Example]:
        folder, found = existing(self.images), []
        for row in _rows(self.path):
            image = picture(row, folder, row.get("image", str), "image")
            answers = tuple(row.of(answer, str, "answers") for answer in row.get("answers", list))
            if not answers:
                raise row.refuse("answers", "empty list; expected an answer")
            prompt = chat_prompt(ASK.format(question=row.get("question", str)))
            name = str(row.values.get("questionId", row.number))
            found.append(Example(name, prompt, answers, group=image.name, images=(image,)))
        return found

    def grade(self, example: Example, reply: Reply) -> Grade:
        return grade_anls(reply.text, example.references)


def _rows(path: str) -> list[Row]:
    rows = list(json_rows(existing(path)))
    if len(rows) == 1 and isinstance(rows[0].values.get("data"), list):
        (outer,) = rows
        inner = [outer.of(value, dict, "data") for value in outer.values["data"]]
        return [Row(f"{path}: record {number}", number, value) for number, value in enumerate(inner)]
    return rows
