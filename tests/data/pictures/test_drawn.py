"""Drawn pictures: questions are answered by the pixels and by nothing else."""

import collections
import hashlib

import numpy as np
import pytest

from data.config import DataConfig
from data.pictures.drawn import BARS, COLORS, HIGHEST, PLACES, THINGS, draw
from data.rows.dataset import open_dataset
from tests.helpers.picture_samples import TILES

SIDE = 56


def seen_bars(pixels: np.ndarray) -> dict[str, int]:
    """Heights of the bars by color, from left to right, from the pixels alone."""
    unit, found = (SIDE - 2) // HIGHEST, []
    for name, color in COLORS.items():
        rows, columns = np.nonzero((pixels == color).all(axis=2))
        if rows.size:
            found.append((columns.min(), name, round((SIDE - 1 - rows.min()) / unit)))
    return {name: height for _, name, height in sorted(found)}


@pytest.mark.parametrize("number", range(30))
def test_answers_about_charts_are_in_the_pixels(number):
    count = 1 + number % BARS
    found = draw(1, number, "charts", SIDE, count)
    bars = seen_bars(np.asarray(found.image))
    assert len(bars) == count
    answers = {f"How high is {name}?": str(height) for name, height in bars.items()}
    answers["Which is highest?"] = max(bars, key=bars.__getitem__)
    answers["Which is lowest?"] = min(bars, key=bars.__getitem__)
    assert dict(found.questions) == answers
    assert found.description == ("What is shown?", ", ".join(f"{name} {height}" for name, height in bars.items()))


@pytest.mark.parametrize("number", range(30))
def test_answers_about_scenes_are_in_the_pixels(number):
    found = draw(1, number, "scenes", SIDE)
    pixels = np.asarray(found.image)
    places, described = {}, dict.fromkeys(PLACES, "")
    for name, color in COLORS.items():
        at = np.argwhere((pixels == color).all(axis=2))
        if at.size:
            row, column = (at.mean(axis=0) // (SIDE // 3)).astype(int).tolist()
            places[name] = PLACES[3 * row + column]
    answers = dict(found.questions)
    shapes = [asked.removeprefix("Where is the ").rstrip("?") for asked in answers if asked.startswith("Where")]
    assert len(places) == len(shapes) == THINGS
    assert {answers[f"What color is the {s}?"]: answers[f"Where is the {s}?"] for s in shapes} == places
    for shape in shapes:
        place = answers[f"Where is the {shape}?"]
        described[place] = f"{answers[f'What color is the {shape}?']} {shape} {place}"
    assert found.description == ("What is shown?", ", ".join(filter(None, described.values())))


@pytest.mark.parametrize("subject", ["charts", "scenes"])
def test_no_answer_to_a_question_is_frequent(subject):
    """What a model that sees nothing could get: below 15%."""
    counts = collections.defaultdict(collections.Counter)
    for number in range(1500):
        for asked, answer in draw(0, number, subject, SIDE).questions:
            counts[asked][answer] += 1
    total = sum(sum(answers.values()) for answers in counts.values())
    best = sum(answers.most_common(1)[0][1] for answers in counts.values())
    assert best / total < 0.15


def test_pictures_do_not_change():
    """Existing runs drew these."""
    pixels = b"".join(draw(0, n, s, SIDE).image.tobytes() for n in range(4) for s in ("charts", "scenes"))
    assert hashlib.sha256(pixels).hexdigest()[:16] == "4a8fb465619d0f7a"
    assert draw(0, 3, "charts", SIDE).questions == draw(0, 3, "charts", SIDE).questions
    assert draw(0, 3, "charts", SIDE).image != draw(1, 3, "charts", SIDE).image


def test_no_two_colors_begin_with_the_same_letter():
    assert len({name[0] for name in COLORS}) == len(COLORS) == 9


def test_conversations_of_drawn_pictures_become_rows(tmp_path):
    source = {"kind": "drawn_pictures", "pictures": 20, "questions": 2}
    base = {"sequence_length": 512, "tiles": TILES | {"tile_size": 56}, "cache_dir": str(tmp_path)}
    config = DataConfig.model_validate(base | {"sources": {"drawn": source}})
    data = open_dataset(config, "train", seed=0)
    assert data.sources[0].tiles is not None and data.sources[0].tiles.pictures["offsets"].size == 21
    blanks = DataConfig.model_validate(base | {"sources": {"drawn": source | {"blank": True}}})
    unseen = open_dataset(blanks, "train", seed=0)
    np.testing.assert_array_equal(unseen.row(0)["tokens"], data.row(0)["tokens"])
    assert unseen.sources[0].tiles is not None and unseen.sources[0].tiles.pictures["offsets"].size == 2
    with data.batches([0], 8, 0, 1) as seen, unseen.batches([0], 8, 0, 1) as empty:
        tiles, whites = next(seen)["tiles"][0], next(empty)["tiles"][0]
    there = whites.any(axis=(1, 2, 3))
    assert (whites[there] == 255).all() and (tiles[there] != 255).any(axis=(1, 2, 3)).all()
