"""Documents that share words with an evaluation are left out; the index of hashes against a loop over word lists."""

import json
import random

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.cache.tokenize_text import tokenize_text
from data.config import DataConfig
from data.decontamination import Decontamination, Evaluations, words_of
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer

BYTES = load_tokenizer("bytes")
QUESTION = " ".join(f"word{i}" for i in range(20))


def evaluations(*texts: str, words: int = 13, least: int = 8) -> Evaluations:
    config = Decontamination(files=["e.txt"], words=words, least_words=least)
    return Evaluations([("e.txt", text) for text in texts], config)


def shares(document: str, texts: list[str], words: int, least: int) -> bool:
    """The slow twin: every list of consecutive words is compared."""
    there = words_of(document)
    for text in map(words_of, texts):
        if (n := min(len(text), words)) < least:
            continue
        wanted = [text[i : i + n] for i in range(len(text) - n + 1)]
        if any(there[i : i + n] in wanted for i in range(len(there) - n + 1)):
            return True
    return False


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=9).map(" ".join)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 4))
def test_matches_equal_a_loop_over_lists_of_words(document, texts, words, least):
    least = min(least, words)
    if all(len(words_of(text)) < least for text in texts):
        with pytest.raises(InputError, match="no text has"):
            evaluations(*texts, words=words, least=least)
        return
    found = evaluations(*texts, words=words, least=least).match(document)
    assert (found is not None) == shares(document, texts, words, least)


@pytest.mark.parametrize(("first", "count", "found"), [(0, 13, True), (7, 13, True), (0, 12, False), (8, 12, False)])
@pytest.mark.parametrize("around", ["{}", "before {}", "{} after", "before {} after"])
def test_thirteen_words_at_any_border_of_both_texts_are_enough(first, count, found, around):
    shared = " ".join(QUESTION.split()[first : first + count])
    match = evaluations(QUESTION).match(around.format(shared))
    assert (match is not None) == found and (match is None or match.text == shared)


def test_words_do_not_join_over_two_texts():
    words = QUESTION.split()
    index = evaluations(" ".join(words[:10]), " ".join(words[10:]), least=10)
    assert evaluations(QUESTION).match(" ".join(words[4:17])) is not None
    assert index.match(" ".join(words[4:17])) is None


def test_case_punctuation_width_and_accents_as_two_characters_do_not_matter():
    index = evaluations("Der Fluß, die Straße; das Café — \uff21\uff22\uff23 \uff11\uff12 und naïve Leute", words=8)
    assert index.match("der FLUSS die STRASSE das cafe\u0301 abc 12 UND naive\u0308 leute") is not None
    assert index.match("der fluss die strasse das cafe abc 12 und naive leute") is None  # other words


def test_scripts_without_spaces_are_compared_by_character():
    index = evaluations("東京都の人口は約千四百万人です")
    assert index.match("問題\uff1a東京都の人口は約千四百万人です。答え") is not None
    assert index.match("東京都の面積は約二千二百平方です") is None


@pytest.mark.parametrize("document", ["", "word0", "… —", " ".join(QUESTION.split()[:12])])
def test_documents_with_fewer_words_share_no_stretch(document):
    assert evaluations(QUESTION).match(document) is None


def test_a_short_text_is_looked_for_whole_and_a_shorter_one_is_ignored():
    index = evaluations("one two three four five six seven eight", "yes no", words=13, least=8)
    assert index.ignored == 1
    assert index.match("so one two three four five six seven eight so") is not None
    assert index.match("one two three four five six seven") is None and index.match("yes no yes no") is None


def test_a_config_that_would_look_for_nothing_is_refused():
    with pytest.raises(pydantic.ValidationError, match=r"least_words \(8\) exceeds words \(5\)"):
        Decontamination(files=["e.txt"], words=5)
    with pytest.raises(InputError, match=r"e\.txt: no text has 8 words"):
        evaluations("too short")


# ---- of a source -----------------------------------------------------------------------------------------------------


def tokenized(tmp_path, documents: list[str], files: list[str], **source):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    config = {
        "sources": {"web": {"path": str(tmp_path / "d.jsonl"), "decontaminate": {"files": files}, **source}},
        "cache_dir": str(tmp_path / "cache"),
    }
    return tokenize_text("web", DataConfig.model_validate(config), BYTES)


@pytest.fixture
def files(tmp_path):
    """An evaluation as JSON lines, with strings inside lists and objects, and one as text."""
    nested = [{"question": "Q?", "choices": [{"text": QUESTION}]}, {"question": "another question", "choices": []}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in nested))
    (tmp_path / "b.txt").write_text("A heading\n\n" + QUESTION.replace("word", "line").replace(" ", "\n") + "\n")
    return [str(tmp_path / name) for name in ("a.jsonl", "b.txt")]


def test_a_source_leaves_out_what_evaluations_have_and_counts_it_by_file(tmp_path, files, caplog):
    caplog.set_level("INFO")
    dirty = [f"x {QUESTION} y", "clean text", f"<|eot|> {QUESTION}", QUESTION.replace("word", "LINE"), ""]
    store = tokenized(tmp_path, dirty, files)
    assert bytes(store["tokens"][1:-1].astype("u1")) == b"clean text" and len(store["offsets"]) == 2
    first, second = (store.meta["contaminated"][file] for file in files)
    assert (first["documents"], second["documents"], store.meta["empty_documents"]) == (2, 1, 1)
    assert first["examples"][0]["document"].endswith("d.jsonl: line 1")
    assert first["examples"][0]["words"] == " ".join(QUESTION.split()[:13])
    assert "data.sources.web.decontaminate: left out 3 of 4 documents" in caplog.text
    assert "1 texts have fewer than 8 words" not in caplog.text and "3 texts have fewer" in caplog.text


def test_the_cache_knows_the_settings_and_the_files(tmp_path, files):
    shared = [" ".join(QUESTION.split()[:13]), "clean"]
    assert len(tokenized(tmp_path, shared, files)["offsets"]) == 2
    looser = {"files": files, "words": 14}
    assert len(tokenized(tmp_path, shared, files, decontaminate=looser)["offsets"]) == 3
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "quite another text " * 5}) + "\n")
    assert len(tokenized(tmp_path, shared, files)["offsets"]) == 3
    assert "contaminated" not in tokenized(tmp_path, shared, files, decontaminate=None).meta


def test_evaluations_and_sources_that_cannot_be_compared_are_refused(tmp_path, files):
    with pytest.raises(InputError, match=r"every document is empty, or left out \(decontaminate\)"):
        tokenized(tmp_path, [QUESTION], files)
    with pytest.raises(InputError, match=r"data\.sources\.web\.path: .*/nowhere\.jsonl"):
        tokenized(tmp_path, ["clean"], [str(tmp_path / "nowhere.jsonl")])
    (tmp_path / "bad.jsonl").write_text('{"a": "fine"}\n{"a": \n')
    with pytest.raises(InputError, match=r"bad\.jsonl: line 2: not JSON"):
        tokenized(tmp_path, ["clean"], [str(tmp_path / "bad.jsonl")])
    made = {"kind": "synthetic", "documents": 2, "length": 9, "decontaminate": {"files": files}}
    config = DataConfig.model_validate({"sources": {"web": made}, "cache_dir": str(tmp_path)})
    with pytest.raises(InputError, match=r"data\.sources\.web\.decontaminate: .* is token ids"):
        tokenize_text("web", config, BYTES)


def test_memory_does_not_grow_with_the_documents():
    """Per stretch of the evaluations 16 bytes are kept, and nothing of a document."""
    draw = random.Random(0)
    index = evaluations(" ".join(draw.choice("abcdefgh") * draw.randint(1, 9) for _ in range(500)))
    before = {length: [part.nbytes for part in table] for length, table in index._tables.items()}
    for _ in range(50):
        index.match(" ".join(draw.choice("stuvwxyz") for _ in range(300)))
    assert before == {length: [part.nbytes for part in table] for length, table in index._tables.items()}
    assert sum(sum(sizes) for sizes in before.values()) <= 16 * 488
