"""Competition mathematics in the form of MATH and AIME: problems whose answers are expressions."""

from typing import Annotated, Literal

from pydantic import Field

from data.graders import symbolic
from data.graders.base import Grade
from data.graders.figures import Figure, figure
from data.graders.maths import grade_answer
from data.tasks.base import Example, Graded, Task, TaskInfo
from data.tasks.prompts import chat_prompt
from data.tasks.reading import existing, json_rows
from maverick_jax.text.chat import Reply

ASK = "Solve the problem step by step. Put the final answer into \\boxed{{}}.\n\n{problem}"


class Competition(Task):
    """`kind: competition`: MATH, AIME and the like. Needs the extra `eval`."""

    kind: Literal["competition"] = "competition"
    """Problems with a final answer in LaTeX."""
    path: str
    """JSON lines with `problem` and `answer` (LaTeX, or a number); `level`, `subject` and `unique_id` or `id` are
    optional."""
    chat: bool = True
    """true: the problem is the user's message. false: the model continues `Problem: ... Solution:`."""
    max_tokens: Annotated[int, Field(ge=1)] = 2048
    """Maximum number of tokens in an answer."""
    source: str = "unknown"
    """Source of the problems, for reports."""
    license: str = "unknown"
    """License of the problems, for reports."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo(self.source, self.license)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return () if self.chat else ("\n\nProblem:",)

    def require(self) -> None:
        symbolic.require()

    def examples(self) -> list[Example]:
        found = []
        for row in json_rows(existing(self.path)):
            problem, answer = row.get("problem", str), row.values.get("answer")
            if isinstance(answer, bool) or not isinstance(answer, str | int) or not str(answer).strip():
                raise row.refuse("answer", f"expected LaTeX or a whole number, got {answer!r:.40}")
            name = str(row.values.get("unique_id", row.values.get("id", row.number)))
            prompt = chat_prompt(ASK.format(problem=problem)) if self.chat else f"Problem: {problem}\nSolution:"
            facts = {key: str(row.values[key]) for key in ("level", "subject") if key in row.values}
            found.append(Example(name, prompt, (str(answer),), facts=facts))
        return found

    def grade(self, example: Example, reply: Reply) -> Grade:
        text = reply.text if self.chat else reply.text.partition("\n\nProblem:")[0]
        return grade_answer(text, example.references[0])

    def figures(self, graded: list[Graded]) -> dict[str, Figure]:
        """The score of each level and subject."""
        scores: dict[str, list[float]] = {}
        for one in graded:
            for key, value in sorted(one.example.facts.items()):
                scores.setdefault(f"{key} {value}", []).append(one.grade.score)
        return {name: figure(scores[name]) for name in sorted(scores)}
