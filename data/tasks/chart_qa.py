"""ChartQA: questions about pictures of charts, by relaxed accuracy."""

import pathlib
from typing import Annotated, Literal

from pydantic import Field

from data.graders.base import Grade
from data.graders.documents import grade_relaxed
from data.tasks.base import Example, Task, TaskInfo
from data.tasks.prompts import chat_prompt
from data.tasks.reading import Row, existing, json_rows
from maverick_jax.text.chat import Reply

ASK = "{question}\n\nEnd your reply with the line `Answer: ...`, with nothing but a number, a word or a few words."


class ChartQa(Task):
    """`kind: chart_qa`: questions about charts."""

    kind: Literal["chart_qa"] = "chart_qa"
    """ChartQA."""
    path: str
    """A JSON list, or JSON lines, of `imgname`, `query` and `label` (a text, or a list of them)."""
    images: str
    """The folder of the pictures."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Maximum number of tokens in an answer."""
    license: str = "unknown"
    """License of the questions, for reports."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("ChartQA", self.license)

    def examples(self) -> list[Example]:
        folder, found = existing(self.images), []
        for row in json_rows(existing(self.path)):
            image, label = picture(row, folder, row.get("imgname", str), "imgname"), row.values.get("label")
            labels = label if isinstance(label, list) else [label]
            references = tuple(str(row.of(one, str | int | float, "label")) for one in labels)  # pyright: ignore[reportArgumentType]
            if not references:
                raise row.refuse("label", "empty list; expected an answer")
            prompt = chat_prompt(ASK.format(question=row.get("query", str)))
            found.append(Example(str(row.number), prompt, references, group=image.name, images=(image,)))
        return found

    def grade(self, example: Example, reply: Reply) -> Grade:
        return grade_relaxed(reply.text, example.references)


def picture(row: Row, folder: pathlib.Path, name: str, field: str) -> pathlib.Path:
    """The file that a row names, which must lie in `folder`. Raises InputError otherwise."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise row.refuse(field, f"{name[:80]!r} lies outside of {folder}")
    if not path.is_file():
        raise row.refuse(field, f"{path} is no file")
    return path
