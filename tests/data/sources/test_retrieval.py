"""Texts with records: what a document holds, and that questions can be answered from it."""

import collections

import pytest

from data.config import DataConfig
from data.rows.dataset import open_dataset
from data.sources.retrieval import RetrievalSource
from maverick_jax.text import load_tokenizer


def texts(**settings) -> list[str]:
    (part,) = RetrievalSource(**settings).parts("r", load_tokenizer("bytes"))
    return [str(document.content) for document in part.documents()]


@pytest.mark.parametrize("characters", [250, 4000])
def test_each_question_is_about_a_record_before_it_and_has_its_value(characters):
    asked, distances = collections.Counter(), []
    for text in texts(documents=20, characters=characters):
        assert characters - 48 < len(text) <= characters
        known, values = {}, []
        for line in text.splitlines():
            if line.startswith("?"):
                key, value = line[1:].split("=")
                assert known[key] == value
                distances.append((len(known) - values.index(key)) / len(known))
            elif len(line) == 3:
                key, value = line.split("=")
                assert key not in known
                known[key] = value
                values.append(key)
            asked["?" if line.startswith("?") else "=" if len(line) == 3 else "sentence"] += 1
    share = asked["?"] / (asked["?"] + asked["="])
    assert 0.4 < share < 0.6 if characters == 250 else asked["="] == 20 * 36
    assert 0.05 < asked["sentence"] / asked.total() < 0.15
    assert max(distances) == 1 and sum(d > 0.5 for d in distances) > 0.3 * len(distances)


def test_settings_and_seeds_give_other_documents_and_equal_ones_the_same():
    first = texts(documents=3)
    assert first == texts(documents=5)[:3] and first != texts(documents=3, corpus_seed=1)
    assert not any("?" in text for text in texts(documents=3, characters=100, questions=0.0))


def test_a_document_of_a_rows_length_is_one_segment(tmp_path):
    sources = {"r": {"kind": "retrieval", "documents": 20, "characters": 254}}
    given = {"sources": sources, "sequence_length": 256, "packing": "best_fit", "cache_dir": str(tmp_path)}
    row = open_dataset(DataConfig.model_validate(given), "train", seed=0).row(0)
    assert set(row["segment_ids"].tolist()) <= {0, 1}
