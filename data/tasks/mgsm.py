"""MGSM: the problems of GSM8K in several languages, with the final numbers only."""

from typing import Annotated, Literal

from pydantic import Field

from data.graders.base import Grade
from data.graders.matching import number_in, numeric
from data.tasks.base import Example, Task, TaskInfo
from data.tasks.prompts import chat_prompt
from data.tasks.reading import files_in, table_rows
from maverick_jax.text.chat import Reply

ASK = "Solve the problem in the language of the problem. Write your steps, then the final number on the last line.\n\n"


class Mgsm(Task):
    """`kind: mgsm`: word problems of one or several languages."""

    kind: Literal["mgsm"] = "mgsm"
    """MGSM."""
    path: str
    """A table `mgsm_LANGUAGE.tsv` of problem and number, without a header, or a folder of such tables. A problem in
    several languages counts as one source."""
    chat: bool = True
    """true: the problem is the user's message. false: the model continues a text, as base models do it."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Maximum number of tokens in an answer."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("MGSM", "CC-BY-4.0")

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return () if self.chat else ("\n\n",)

    def examples(self) -> list[Example]:
        found = []
        for path in files_in(self.path, ".tsv"):
            language = path.stem.removeprefix("mgsm_")
            for row in table_rows(path, "\t", ("question", "answer")):
                question, answer = row.get("question", str), row.get("answer", str)
                if number_in(answer) is None:
                    raise row.refuse("answer", f"{answer!r:.40} is no number")
                prompt = chat_prompt(ASK + question) if self.chat else f"{question}\n"
                found.append(Example(f"{language} {row.number}", prompt, (answer,), group=str(row.number)))
        return found

    def grade(self, example: Example, reply: Reply) -> Grade:
        return numeric(reply.text if self.chat else reply.text.partition("\n\n")[0], example.references)
