"""HumanEval: functions to be written from their signature and description, with tests that stay hidden."""

from typing import Annotated, Literal

from pydantic import Field

from data.graders.base import Grade
from data.graders.code import body_in, grade_program, program_in
from data.sandbox import run
from data.tasks.base import Example, Task, TaskInfo
from data.tasks.prompts import chat_prompt
from data.tasks.reading import existing, json_rows
from maverick_jax.text.chat import Reply

ASK = "Write the whole function in one block of Python code.\n\n```python\n{prompt}```"
CANDIDATE = "_function_under_test"


class HumanEval(Task):
    """`kind: human_eval`: functions, run on their tests in a sandbox."""

    kind: Literal["human_eval"] = "human_eval"
    """HumanEval."""
    path: str
    """JSON lines with `task_id`, `prompt` (signature and description), `entry_point` and `test`."""
    chat: bool = True
    """true: the user asks for the function. false: the model continues it, as base models do it."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Maximum number of tokens in an answer."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("HumanEval", "MIT")

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return () if self.chat else ("\ndef ", "\nclass ", "\nif ", "\nprint(", "\n#", "\n```")

    @property
    def runs_code(self) -> bool:
        return True

    def require(self) -> None:
        run.require()

    def examples(self) -> list[Example]:
        found = []
        for row in json_rows(existing(self.path)):
            text = {name: row.get(name, str) for name in ("task_id", "prompt", "entry_point", "test")}
            if not text["entry_point"].isidentifier():
                raise row.refuse("entry_point", f"{text['entry_point']!r:.40} is not the name of a function")
            prompt = chat_prompt(ASK.format(prompt=text["prompt"])) if self.chat else text["prompt"]
            found.append(Example(text["task_id"], prompt, (), facts=text))
        return found

    def grade(self, example: Example, reply: Reply) -> Grade:
        name, prompt = example.facts["entry_point"], example.facts["prompt"]
        program = program_in(reply.text, [name]) if self.chat else prompt + body_in(reply.text)
        if program is not None and self.chat:
            program = f"{_imports(prompt)}\n{program}"
        return grade_program(program, tests_of(example), reply.text)


def tests_of(example: Example) -> run.ProgramTests:
    """The example's tests. What its prompt defines besides the function is part of them."""
    facts = example.facts
    named = f"{facts['entry_point']} = {CANDIDATE}"
    text = f"{facts['prompt']}\n\n{named}\n{facts['test']}\n\ncheck({CANDIDATE})\n"
    return run.ProgramTests(text, {CANDIDATE: facts["entry_point"]}, [facts["entry_point"]])


def _imports(prompt: str) -> str:
    """The imports that a prompt gives, which a reply may leave out."""
    return "\n".join(line for line in prompt.splitlines() if line.startswith(("import ", "from ")))
