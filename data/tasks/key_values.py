"""Key-value retrieval: many pairs of random identifiers, of which one is asked for."""

import json
import random
import uuid
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from data.graders.base import Grade, binary
from data.graders.figures import Figure, figure
from data.graders.matching import differs
from data.tasks.base import Example, Graded, Task, TaskInfo
from data.tasks.prompts import chat_prompt
from data.tasks.reading import existing, json_rows
from maverick_jax.text.chat import Reply

ASK = "Find the value of one key in the JSON object below. Answer with the value alone."
Share = Annotated[float, Field(ge=0, le=1)]


class KeyValues(Task):
    """`kind: key_values`: retrieval from a long context, at chosen depths."""

    kind: Literal["key_values"] = "key_values"
    """Key-value retrieval."""
    path: str | None = None
    """JSON lines with `ordered_kv_records` (pairs of key and value), `key` and `value`. null: made-up pairs."""
    pairs: Annotated[int, Field(ge=1, le=100_000)] = 75
    """Number of pairs of an example that is made up."""
    count: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Number of examples that are made up, at each depth."""
    depths: Annotated[tuple[Share, ...], Field(min_length=1)] | None = None
    """Where the pair is put: 0 is before all others, 1 behind them. Examples at several depths count as one source.
    null: where the file has it, or 0, 0.25, 0.5, 0.75 and 1 for those that are made up."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the examples that are made up."""
    max_tokens: Annotated[int, Field(ge=1)] = 100
    """Maximum number of tokens in an answer."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("lost in the middle", "MIT") if self.path else TaskInfo("generated from a seed", "Apache-2.0")

    def examples(self) -> list[Example]:
        depths = self.depths or (None if self.path else (0.0, 0.25, 0.5, 0.75, 1.0))
        found = []
        for number, (pairs, at) in enumerate(self._from_file() if self.path else self._made_up()):
            key, value = pairs[at]
            others = [pair for i, pair in enumerate(pairs) if i != at]
            places = [at] if depths is None else [round(depth * len(others)) for depth in depths]
            for place in places:
                listed = [*others[:place], (key, value), *others[place:]]
                text = json.dumps(dict(listed), indent=1)
                prompt = chat_prompt(f'{ASK}\n\n{text}\n\nKey: "{key}"')
                facts = {"depth": place / max(1, len(others)), "pairs": len(pairs)}
                found.append(Example(f"{number} at {place}", prompt, (value,), group=str(number), facts=facts))
        return found

    def _made_up(self) -> list[tuple[list[tuple[str, str]], int]]:
        draw = random.Random(f"key_values {self.seed} {self.pairs}")
        name = lambda: str(uuid.UUID(int=draw.getrandbits(128), version=4))
        return [([(name(), name()) for _ in range(self.pairs)], 0) for _ in range(self.count)]

    def _from_file(self) -> list[tuple[list[tuple[str, str]], int]]:
        found = []
        for row in json_rows(existing(self.path or "")):
            pairs = [
                tuple(map(str, row.of(pair, list, "ordered_kv_records")))
                for pair in row.get("ordered_kv_records", list)
            ]
            key, value = row.get("key", str), row.get("value", str)
            if any(len(pair) != 2 for pair in pairs) or (key, value) not in pairs:
                raise row.refuse("key", "is not a key of ordered_kv_records with this value")
            found.append((pairs, pairs.index((key, value))))
        return found

    def grade(self, example: Example, reply: Reply) -> Grade:
        (value,) = example.references
        parts = {"exact": float(reply.text.strip().strip('"') == value)}
        right = value.lower() in reply.text.lower()
        return binary(right, differs(reply.text, [value]), bool(reply.text.strip()), parts)

    def figures(self, graded: Sequence[Graded]) -> dict[str, Figure]:
        """The score in each tenth of the context."""
        scores: dict[str, list[float]] = {}
        for one in graded:
            tenth = min(9, int(one.example.facts["depth"] * 10))
            scores.setdefault(f"depth {tenth / 10:.1f} to {(tenth + 1) / 10:.1f}", []).append(one.grade.score)
        return {name: figure(scores[name]) for name in sorted(scores)} if len(scores) > 1 else {}
