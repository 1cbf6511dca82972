"""MBPP: small programs to be written from a sentence and examples of their use."""

from typing import Annotated, Literal

from pydantic import Field

from data.graders.base import Grade
from data.graders.code import defined, free_names, grade_program, program_in
from data.sandbox import run
from data.tasks.base import Example, Task, TaskInfo
from data.tasks.prompts import chat_prompt
from data.tasks.reading import Row, existing, json_rows
from maverick_jax.text.chat import Reply

ASK = "{prompt} Your code must pass these tests:\n\n```python\n{tests}\n```\n\nAnswer with one block of Python code."


class Mbpp(Task):
    """`kind: mbpp`: programs, run on their tests in a sandbox."""

    kind: Literal["mbpp"] = "mbpp"
    """MBPP."""
    path: str
    """JSON lines with `task_id`, `prompt` or `text`, and `test` or `test_list`, a list of assertions; optional are
    `test_setup_code` and `code`, a solution, which says which names of Python itself the program replaces."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Maximum number of tokens in an answer."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("MBPP", "CC-BY-4.0")

    @property
    def runs_code(self) -> bool:
        return True

    def require(self) -> None:
        run.require()

    def examples(self) -> list[Example]:
        found = []
        for row in json_rows(existing(self.path)):
            asked = row.get("text" if "text" in row.values else "prompt", str)
            listed = row.get("test_list" if "test_list" in row.values else "test", list)
            tests = "\n".join(row.of(test, str, "test") for test in listed)
            setup = row.of(row.values.get("test_setup_code") or "", str, "test_setup_code")
            solution = row.of(row.values.get("code") or "", str, "code")
            facts = {"tests": f"{setup}\n{tests}\n", "names": _names(row, f"{setup}\n{tests}", solution)}
            prompt = chat_prompt(ASK.format(prompt=asked, tests=tests))
            found.append(Example(str(row.values.get("task_id", row.number)), prompt, (), facts=facts))
        return found

    def grade(self, example: Example, reply: Reply) -> Grade:
        return grade_program(program_in(reply.text, example.facts["names"][:1]), tests_of(example), reply.text)


def tests_of(example: Example) -> run.ProgramTests:
    """The example's tests, which call the program by the names that they use."""
    return run.ProgramTests(example.facts["tests"], {name: name for name in example.facts["names"]})


def _names(row: Row, tests: str, solution: str) -> list[str]:
    """The names by which the tests call the program."""
    try:
        return sorted(free_names(tests, defined(solution)))
    except (SyntaxError, ValueError):
        raise row.refuse("test", "is not Python") from None
