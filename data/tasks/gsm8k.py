"""GSM8K: word problems of grade-school mathematics whose worked answers end with `#### number`."""

import re
from typing import Annotated, Literal

from pydantic import Field

from data.graders.base import Grade
from data.graders.matching import number_in, number_of, numeric
from data.tasks.base import Example, Task, TaskInfo
from data.tasks.prompts import chat_prompt, text_prompt
from data.tasks.reading import existing, json_rows
from maverick_jax.text.chat import Reply

ASK = "Solve the problem. Write your steps, then the answer alone on the last line, after ####.\n\n"
NEXT_QUESTION = "\n\nQuestion:"
_CALCULATION = re.compile(r"<<[^<>]*>>")
_STRICT = re.compile(r"####\s*\$?(-?[\d.,]+)")


class Gsm8k(Task):
    """`kind: gsm8k`: word problems with a whole number as the answer."""

    kind: Literal["gsm8k"] = "gsm8k"
    """GSM8K."""
    path: str
    """JSON lines with `question` and `answer`, a worked answer that ends with `#### number`."""
    shots_path: str | None = None
    """The same for worked examples, such as lines of the training split. null: no shots."""
    shots: Annotated[int, Field(ge=0)] = 5
    """Number of worked examples before each question, from the first on."""
    chat: bool = True
    """true: the problem is the user's message. false: the model continues a text, as base models do it."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Maximum number of tokens in an answer."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("GSM8K", "MIT")

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return () if self.chat else (NEXT_QUESTION,)

    def examples(self) -> list[Example]:
        shots = _problems(self.shots_path)[: self.shots] if self.shots_path else []
        found = []
        for number, (question, answer) in enumerate(_problems(self.path)):
            if self.chat:
                prompt = chat_prompt(ASK + question, [(ASK + q, a) for q, a in shots])
            else:
                worked = [(f"Question: {q}\nAnswer:", f" {a}") for q, a in shots]
                prompt = text_prompt(f"Question: {question}\nAnswer:", worked)
            found.append(Example(str(number), prompt, (answer.rpartition("####")[2].strip(),)))
        return found

    def grade(self, example: Example, reply: Reply) -> Grade:
        """Score 1 if the reply's last number is right. The part `strict`: the number after the first `####` is."""
        text = reply.text if self.chat else reply.text.partition(NEXT_QUESTION)[0]
        (wanted,) = example.references
        strict = _STRICT.search(text)
        marked = strict is not None and number_of(strict[1]) == number_of(wanted)
        return numeric(text, [wanted])._replace(parts={"strict": float(marked)})


def _problems(path: str) -> list[tuple[str, str]]:
    found = []
    for row in json_rows(existing(path)):
        answer = _CALCULATION.sub("", row.get("answer", str))
        if "####" not in answer or number_in(answer.rpartition("####")[2]) is None:
            raise row.refuse("answer", "has no number after ####")
        found.append((row.get("question", str), answer))
    return found
