"""Needles: their tokens, lengths, and places next to the borders of chunks."""

import pytest

from data.tasks.base import Graded
from data.tasks.needle import Needle
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Reply, render
from tests.helpers.shared_data import SHARED, needs_shared

BYTES = load_tokenizer("bytes")


def places(task: Needle, tokenizer) -> dict[str, tuple[int, int]]:
    """Wanted place by example, and its error; checks that the needle begins there, and the length."""
    found = {}
    for example in task.examples_for(tokenizer):
        ids = render(example.prompt, tokenizer, add_generation_prompt=True).ids.tolist()
        facts = example.facts
        assert tokenizer.decode(ids[facts["position"] :]).startswith("The secret number of"), example.id
        assert abs(len(ids) - facts["length"]) <= 64 + 0.05 * facts["length"]
        found[example.id] = (facts["wanted"], facts["position"] - facts["wanted"])
    return found


def test_needles_begin_at_the_wanted_token_and_around_each_border():
    found = places(Needle(lengths=(1024,), chunk=256, count=1), BYTES)
    assert all(error == 0 for _, error in found.values())
    wanted = {place for place, _ in found.values()}
    assert {255, 256, 257, 511, 512, 513, 767, 768, 769} <= wanted and len(found) == 5 + 9


@needs_shared
def test_needles_in_tokens_of_the_public_tokenizer():
    path = SHARED.parent / "tokenizer" / "llama4_tokenizer.model"
    found = places(Needle(lengths=(2048,), chunk=512, count=1, borders=2), load_tokenizer(path))
    assert all(error == 0 for _, error in found.values()) and len(found) == 5 + 6


def test_figures_by_length_and_place(tmp_path):
    (tmp_path / "hay.txt").write_text("Some words of a book.\n\nAnd others.\n")
    task = Needle(lengths=(512, 768), depths=(0.5,), count=2, haystack=str(tmp_path / "hay.txt"))
    examples = task.examples_for(BYTES)
    assert "And others." in examples[0].prompt.messages[0].text and len({e.id for e in examples}) == 4
    grades = [task.grade(e, Reply(f"It is {e.references[0]}." if e.facts["length"] == 512 else "7")) for e in examples]
    found = task.figures([Graded(e, Reply(""), g) for e, g in zip(examples, grades, strict=True)])
    assert [one.value for one in found.values()] == [0.5, 1, 0] and all(
        one.clusters for one in list(found.values())[:1]
    )
    with pytest.raises(InputError, match="expected `examples_for`"):
        task.examples()
