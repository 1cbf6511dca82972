"""Random texts and trajectories that teach models pretrained in minutes to copy values and to call tools."""

import json
import random
import re
import string
from collections.abc import Iterator

from data.trajectories import Trajectory
from data.trajectories.trajectory import Outcome, Provenance, Step
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, ToolCall

SYMBOLS = string.digits + string.ascii_uppercase
SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
PEOPLE, THINGS = ("member", "client", "patient", "reader"), ("parcel", "loan", "lease", "repair", "ticket")


class Values:
    """Random words, names, ids and numbers."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)

    def word(self) -> str:
        return "".join(self.draw.choices(SYLLABLES, k=self.draw.randint(2, 3)))

    def code(self) -> str:
        return "".join(self.draw.choices(SYMBOLS, k=6))

    def owner(self) -> str:
        return f"{self.word()}_{self.word()}_{self.draw.randint(1000, 9999)}"

    def letters(self) -> str:
        """Like `owner`, but of random letters instead of words."""
        first, last = ("".join(self.draw.choices(string.ascii_lowercase, k=self.draw.randint(3, 8))) for _ in range(2))
        return f"{first}_{last}_{self.draw.randint(1000, 9999)}"

    def sum(self) -> str:
        return str(self.draw.randint(10, 99_999))

    def place(self) -> str:
        return self.word().title()


def tables(count: int) -> Iterator[str]:
    """Texts with rows of values, which are repeated in other orders."""
    values = Values(0)
    draw, make = values.draw, (values.code, values.owner, values.sum, values.place)
    for _ in range(count):
        columns = draw.sample(make, 2)
        rows = [" ".join(each() for each in columns) for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 5)))]
        again = [row for _ in range(draw.randint(1, 3)) for row in draw.sample(rows, len(rows))]
        yield "\n".join([*rows, *again]) + "\n"


def offices(count: int) -> Iterator[Trajectory]:
    """Trajectories of an agent that looks up a user and some of their records, and cancels those it is asked to."""
    for number in range(count):
        yield Trajectory(_Office(number).steps, (), Outcome(1.0, True), Provenance("made_up", id=f"office-{number}"))


def renamed(trajectory: str, seed: int) -> str:
    """A tau-bench airline trajectory (JSON) with other ids of users, reservations and flights, drawn from `seed`; equal
    ids get equal replacements. Raises InputError if the trajectory uses up the available ids."""
    values, others = Values(seed), {}
    make = {
        r"\b[a-z]+_[a-z]+_\d{4}\b": values.letters,
        r"(?<=\")[0-9A-Z]{6}(?=\\?\")": values.code,
        r"\bHAT\d{3}\b": lambda: f"HAT{values.draw.randint(100, 999)}",
    }
    for pattern, other in make.items():
        for found in dict.fromkeys(re.findall(pattern, trajectory)):
            tried = (other() for _ in range(10_000))
            new = next((made for made in tried if made not in trajectory and made not in others.values()), None)
            if new is None:
                raise InputError(f"{found}: no other id is left for it; {len(others)} ids were replaced before it")
            others[found] = new
    return re.sub("|".join(others), lambda found: others[found[0]], trajectory) if others else trajectory


class _Office:
    """Writes one trajectory."""

    def __init__(self, seed: int):
        self.values = Values(seed)
        self.draw, self.steps = self.values.draw, []
        self.person, self.thing = self.draw.choice(PEOPLE), self.draw.choice(THINGS)
        self.owner, self.codes = self.values.letters(), [self.values.code() for _ in range(self.draw.randint(2, 6))]
        self._who()
        for code in self._which():
            self._look_up(code)
            if self.draw.random() < 0.4:
                self._cancel(code)
        self._say(Role.ASSISTANT, self.draw.choice(("Is there anything else?", "That is all I found.")))

    def _say(self, role: Role, text: str) -> None:
        self.steps.append(Step(Message(role, text)))

    def _call(self, name: str, result: dict, **arguments: str) -> None:
        self.steps.append(Step(Message(Role.ASSISTANT, "", calls=(ToolCall(name, arguments),))))
        self.steps.append(Step(Message(Role.TOOL, json.dumps(result))))

    def _who(self) -> None:
        self._say(Role.SYSTEM, f"You help each {self.person} with what they ask about their {self.thing}s.")
        wish = self.draw.choice((f"I have a question about a {self.thing}.", "Can you help me?"))
        if self.draw.random() < 0.5:
            self._say(Role.USER, wish)
            self._say(Role.ASSISTANT, f"Of course. What is your {self.person} id?")
            self._say(Role.USER, self.draw.choice((f"My id is {self.owner}.", f"It is {self.owner}.", self.owner)))
        else:
            self._say(Role.USER, f"{wish} My {self.person} id is {self.owner}.")
        more = {self.values.word(): self.values.sum() for _ in range(self.draw.randint(1, 4))}
        found = {"name": self.owner.partition("_")[0].title(), **more, f"{self.thing}s": self.codes}
        self._call(f"get_{self.person}_details", found, **{f"{self.person}_id": self.owner})

    def _which(self) -> list[str]:
        some = self.draw.sample(self.codes, self.draw.randint(1, 2))
        if self.draw.random() < 0.4:
            return self.codes
        if self.draw.random() < 0.5:
            self._say(Role.ASSISTANT, "You have these:\n\n" + "".join(f"- {c}\n" for c in self.codes) + "\nWhich one?")
            self._say(Role.USER, self.draw.choice(("It is {}.", "{}, please.", "The {}.")).format(" and ".join(some)))
        else:
            self._say(Role.ASSISTANT, f"Which {self.thing} is it?")
            self._say(Role.USER, " and ".join(some))
        return some

    def _look_up(self, code: str) -> None:
        values = self.values
        more = {values.word(): self.draw.choice((values.sum, values.place))() for _ in range(self.draw.randint(2, 8))}
        found = {f"{self.thing}_id": code, f"{self.person}_id": self.owner, **more}
        self._call(f"get_{self.thing}_details", found, **{f"{self.thing}_id": code})

    def _cancel(self, code: str) -> None:
        self._say(Role.ASSISTANT, self.draw.choice((f"I found {code}. What shall I do with it?", f"This is {code}.")))
        self._say(Role.USER, self.draw.choice(("Please cancel it.", f"Cancel {code}.")))
        self._call(f"cancel_{self.thing}", {f"{self.thing}_id": code, "state": "cancelled"},
                   **{f"{self.thing}_id": code})  # fmt: skip
        self._say(Role.ASSISTANT, f"{code} is cancelled.")
        self._say(Role.USER, self.draw.choice(("Good.", "Thanks, go on.")))
