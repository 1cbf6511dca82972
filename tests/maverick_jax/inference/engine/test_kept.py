"""Which kept texts are found, from where they go on, and which are dropped."""

import numpy as np
import pytest

from maverick_jax.inference.engine.kept import KeptText, KeptTexts, Reach

CHUNKS, WINDOW, GLOBAL = Reach(8, False), Reach(8, True), Reach(None, False)


@pytest.mark.parametrize(
    ("reach", "shared", "kept", "expected"),
    [
        (CHUNKS, 20, 20, 20),
        (CHUNKS, 19, 20, 19),
        (CHUNKS, 16, 20, 16),
        (CHUNKS, 15, 20, 8),  # needs 8 to 14, and 12 to 19 are kept
        (CHUNKS, 15, 16, 15),
        (CHUNKS, 5, 8, 5),
        (CHUNKS, 5, 9, 0),
        (WINDOW, 20, 20, 20),
        (WINDOW, 19, 20, 19),
        (WINDOW, 18, 20, 0),
        (WINDOW, 5, 8, 5),
        (GLOBAL, 3, 20, 3),
    ],
)
def test_a_text_goes_on_from_where_the_kept_positions_suffice(reach, shared, kept, expected):
    assert reach.resumable(shared, kept) == expected


@pytest.mark.parametrize("reach", [CHUNKS, WINDOW])
def test_no_resumed_position_needs_a_key_that_is_not_kept(reach):
    for kept in range(1, 40):
        for shared in range(kept + 1):
            n = reach.resumable(shared, kept)
            first = n - n % 8 if not reach.window else max(0, n - 7)
            needed = range(first, n)
            assert n <= shared and all(p >= kept - 8 for p in needed)


def text(tokens: list[int], realm: str = "", session: str | None = None, size: int = 1) -> KeptText[None]:
    return KeptText(realm, session, np.array(tokens), None, size)


def keep(texts: KeptTexts, one: KeptText) -> bool:
    if fits := texts.make_room(one.realm, one.session, one.identity, one.bytes):
        texts.add(one)
    return fits


def found(texts: KeptTexts, tokens: list[int], realm: str = "") -> int:
    """How many tokens of a text need not be computed."""
    one = texts.find(realm, np.array(tokens))
    return 0 if one is None else one[1]


def test_texts_are_found_in_their_realm_and_dropped_by_bytes():
    texts: KeptTexts[None] = KeptTexts(3, GLOBAL)
    for i in range(3):
        assert keep(texts, text([i, 1, 2, 3]))
    assert found(texts, [0, 1, 9]) == 2 and found(texts, [0, 1], "other") == 0
    assert found(texts, [7]) == 0
    assert keep(texts, text([5, 5], size=2)) and texts.bytes == 3  # the first was used last
    assert found(texts, [1, 1]) == 0 and found(texts, [0, 1]) == 1
    assert not keep(texts, text([6], size=4)) and len(texts) == 2


def test_a_text_takes_the_place_of_the_same_text_and_of_its_sessions_last():
    texts: KeptTexts[None] = KeptTexts(10, GLOBAL)
    keep(texts, text([1, 2], session="a"))
    keep(texts, text([1, 2, 3], session="a"))
    keep(texts, text([1, 2, 3], realm="r", session="a"))
    keep(texts, text([4]))
    keep(texts, text([4]))
    assert len(texts) == texts.bytes == 3
    assert found(texts, [1, 2, 3]) == 3


def test_all_texts_can_be_dropped():
    texts: KeptTexts[None] = KeptTexts(10, GLOBAL)
    assert keep(texts, text([1, 2, 3]))
    texts.clear()
    assert len(texts) == 0 and texts.bytes == 0 and texts.find("", np.array([1, 2, 3])) is None
