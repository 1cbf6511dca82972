"""The held-out lines that the fill-in-the-middle benchmark asks about, and how it counts."""

import json

import numpy as np
import pytest

from benchmarks import fill_in_the_middle as benchmark
from benchmarks.fill_in_the_middle import Question, compared, question, questions, run_config, write_texts, written
from data.fill_in_the_middle import Sentinels, restored
from maverick_jax.text import load_tokenizer

CODE = "".join(f"def function_{i}(value, other):\n    return value + {i} * other\n\n" for i in range(400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    (folder / "library").mkdir()
    for name in "abcdefghijklmnopqrstuvwxyz":
        (folder / "library" / f"{name}.py").write_text(CODE.replace("value", f"{name}_value" * 3))
    (folder / "library" / "latin.py").write_bytes(b"# \xe9\n" * 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "VOCABULARY", 400)
        write_texts(folder, folder / "library")
    return folder


def test_files_are_held_out_whole(folder):
    files = {
        name: {json.loads(line)["file"] for line in (folder / f"{name}.jsonl").read_text().splitlines()}
        for name in ("train", "held_out")
    }
    assert files["train"] and files["held_out"] and not files["train"] & files["held_out"]
    assert len(files["train"] | files["held_out"]) == 26


def test_a_question_is_about_a_few_tokens_inside_a_piece(folder):
    tokenizer = load_tokenizer(folder / "tokenizer")
    asked = questions(folder, tokenizer)
    assert asked == questions(folder, tokenizer) and len(asked) > 20
    assert {len(one.middle) for one in asked} == set(range(1, benchmark.MOST_TOKENS + 1))
    for one in asked:
        assert one.prefix and one.suffix
        text = tokenizer.decode([*one.prefix, *one.middle, *one.suffix])
        assert text in (folder / "library" / one.file).read_text()
    assert question("x.py", "a = 1\n", tokenizer) is None
    assert question("x.py", "number = 12345\n" * benchmark.LENGTH, tokenizer) is None


def test_what_is_read_is_what_training_writes(folder):
    """Both orders are documents that fill-in-the-middle makes of the piece; from left to right nothing is added."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    asked = questions(folder, tokenizer)[0]
    sentinels = Sentinels.of(tokenizer.controls, "x", "y")
    for order in ("PSM", "SPM"):
        before, after = written(asked, order, tokenizer)
        ids = np.array([*before, *after])
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id) and after[:-1] == asked.middle
        assert restored(ids[1:-1], sentinels).tolist() == [*asked.prefix, *asked.middle, *asked.suffix]
    assert written(asked, "left to right", tokenizer) == ([tokenizer.bos_id, *asked.prefix], asked.middle)


def test_twins_differ_by_the_rearrangement_alone(folder):
    filled, plain = (run_config(variant, 1, folder) for variant in ("filled", "plain"))
    source = filled.data.sources["code"]
    assert source.fill_in_the_middle is not None
    sources = {"code": source.model_copy(update={"fill_in_the_middle": None})}
    assert filled.model_copy(update={"data": filled.data.model_copy(update={"sources": sources})}) == plain


def test_gaps_are_paired_and_short_middles_are_counted_apart():
    asked = [Question("a", [], [1] * 2, []), Question("b", [], [1] * 20, []), Question("c", [], [1], [])]
    of = lambda nats, exact: {"nats": nats, "exact": exact}
    plain = {"seed": 0, "answers": {"left to right": of([2.0, 3.0, 4.0], [False, True, False])}}
    filled = {"seed": 0, "answers": {"PSM": of([1.0, 2.5, 3.0], [True, False, True])}}
    twin, line = compared(filled, plain, asked)
    assert twin["nats_gap"] == [0, 0, 0] and twin["nats"] == 3
    assert line["nats_gap"][0] == pytest.approx(-2.5 / 3) and line["short_middles"] == 2
    assert (line["short_exact"], line["short_exact_gap"][0]) == (1, 1)
    assert line["exact_gap"][0] == pytest.approx(1 / 3)


def test_without_sources_there_is_nothing_to_learn_from(tmp_path):
    with pytest.raises(SystemExit, match="no sources of Python's standard library"):
        write_texts(tmp_path, tmp_path / "none")
