"""Texts from which something has to be looked up: records `key=value` among ordinary sentences, and questions.

    Rain is expected by the evening.
    A=k
    7=b
    ?A=k

The source `retrieval` makes documents of them to train on; the task `retrieval` asks for records by length and depth.
"""

import string
from typing import NamedTuple

import numpy as np

SENTENCES = (
    "The road runs along the river for a while.", "A cart stands at the gate.", "Nobody has mended the wall yet.",
    "The market opens early on most days.", "Rain is expected by the evening.", "Some of the lamps are lit already.",
    "Two boats lie at the quay.", "The baker counts the loaves again.",
)  # fmt: skip
KEYS = string.ascii_uppercase + string.digits
VALUES = string.ascii_lowercase


class KeyedLine(NamedTuple):
    key: str
    value: str

    @property
    def line(self) -> str:
        return f"{self.key}={self.value}\n"

    @property
    def question(self) -> str:
        """What its value follows."""
        return f"?{self.key}="

    @property
    def asked(self) -> str:
        """The question with its answer, as a line."""
        return f"{self.question}{self.value}\n"


def draw_records(random: np.random.RandomState) -> list[KeyedLine]:
    """One record for each key, in random order; each value is any letter."""
    keys, values = random.permutation(len(KEYS)), random.randint(0, len(VALUES), len(KEYS))
    return [KeyedLine(KEYS[k], VALUES[v]) for k, v in zip(keys, values, strict=True)]


def draw_sentences(random: np.random.RandomState, count: int) -> list[str]:
    """Ordinary lines."""
    return [f"{SENTENCES[i]}\n" for i in random.randint(0, len(SENTENCES), count)]
