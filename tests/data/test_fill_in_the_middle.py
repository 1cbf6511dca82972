"""Documents with their middle last are the same documents."""

import itertools
import json

import numpy as np
import pytest

from data.config import DataConfig
from data.fill_in_the_middle import FillInTheMiddle, Sentinels, rearranged, restored
from data.rows.dataset import open_dataset
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.tokenizers.byte_pairs import LEAST_ENTRIES, train_byte_pairs

MARKS = Sentinels(1000, 1002, 1001)
ALWAYS = FillInTheMiddle(rate=1.0)
TEXTS = [f"def function_{i}(x):\n    return {i} * x\n" * (1 + i % 5) for i in range(60)]


def document(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 1000, rng.integers(0, 400)).astype(np.uint16)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_document_is_restored_exactly(count):
    orders = {"PSM": 0, "SPM": 0, "as it is": 0}
    config = FillInTheMiddle(rate=0.7, suffix_first=0.4)
    for number in range(count):
        ids = document(number)
        found = rearranged(ids, number, config, MARKS)
        np.testing.assert_array_equal(restored(found, MARKS), ids)
        assert found.dtype == ids.dtype and found.size in (ids.size, ids.size + 3)
        if found.size == ids.size:
            orders["as it is"] += 1
            np.testing.assert_array_equal(found, ids)
        else:
            assert sorted(found.tolist()) == sorted([*ids.tolist(), *MARKS])
            orders["SPM" if found[1] == MARKS.suffix else "PSM"] += 1  # an empty prefix looks like SPM, but is rare
    shares = {order: n / count for order, n in orders.items()}
    assert shares == pytest.approx({"PSM": 0.42, "SPM": 0.28, "as it is": 0.3}, abs=0.07)  # 3 deviations of 500


def test_both_orders_have_the_middle_last():
    ids = np.arange(10, dtype=np.uint16)
    for number in range(50):
        psm = rearranged(ids, number, FillInTheMiddle(rate=1.0, suffix_first=0.0), MARKS).tolist()
        spm = rearranged(ids, number, FillInTheMiddle(rate=1.0, suffix_first=1.0), MARKS).tolist()
        assert psm[0] == spm[0] == MARKS.prefix and spm[1] == MARKS.suffix
        prefix, suffix = psm[1 : psm.index(MARKS.suffix)], psm[psm.index(MARKS.suffix) + 1 : psm.index(MARKS.middle)]
        middle = psm[psm.index(MARKS.middle) + 1 :]
        assert prefix + middle + suffix == list(range(10))
        assert spm == [MARKS.prefix, MARKS.suffix, *suffix, MARKS.middle, *prefix, *middle]  # cut at the same places


def test_cuts_are_anywhere():
    ids = np.arange(3, dtype=np.uint16)
    cuts = {tuple(rearranged(ids, n, FillInTheMiddle(rate=1.0, suffix_first=0.0), MARKS).tolist()) for n in range(400)}
    assert len(cuts) == 10  # two cuts among four places, in order


def test_it_is_a_function_of_seed_and_number():
    ids = document(7)
    same = [rearranged(ids, 5, ALWAYS, MARKS).tolist() for _ in range(2)]
    assert same[0] == same[1] == rearranged(ids.copy(), 5, FillInTheMiddle(rate=1.0, seed=0), MARKS).tolist()
    others = [rearranged(ids, n, FillInTheMiddle(rate=1.0, seed=s), MARKS).tolist() for n, s in ((6, 0), (5, 1))]
    assert same[0] not in others


def test_a_document_with_a_sentinel_stays_as_it_is():
    ids = np.array([5, MARKS.middle, 6], np.uint16)
    assert rearranged(ids, 0, ALWAYS, MARKS).tolist() == ids.tolist()
    with pytest.raises(ValueError, match="expected one of each"):
        restored(np.array([MARKS.prefix, 5, MARKS.middle, MARKS.suffix], np.uint16), MARKS)


# ---- of a source -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    (folder / "tokenizer").mkdir()
    train_byte_pairs(TEXTS, LEAST_ENTRIES + 20, folder / "tokenizer")
    (folder / "code.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return folder


def opened(folder, **options):
    config = {
        "sources": {"code": {"path": str(folder / "code.jsonl"), **options}},
        "tokenizer": str(folder / "tokenizer"),
        "sequence_length": 64,
        "cache_dir": str(folder / "cache"),
    }
    return open_dataset(DataConfig.model_validate(config), "train", seed=0)


def documents_of(dataset) -> list[np.ndarray]:
    store = dataset.sources[0].store
    offsets = store["offsets"]
    return [store["tokens"][begin + 1 : end - 1] for begin, end in itertools.pairwise(offsets)]


def test_documents_of_a_source_are_rearranged_between_their_ends(folder):
    plain, filled = opened(folder), opened(folder, fill_in_the_middle={"rate": 0.8})
    sentinels = Sentinels.of(plain.tokenizer.controls, "x", "y")
    there, here = documents_of(plain), documents_of(filled)
    changed = sum(one.size != other.size for one, other in zip(there, here, strict=True))
    assert 36 <= changed <= 58
    for one, other in zip(there, here, strict=True):
        np.testing.assert_array_equal(restored(other, sentinels), one)
    assert plain.fingerprint != filled.fingerprint
    assert plain.fingerprint == opened(folder, fill_in_the_middle=None).fingerprint


def test_a_tokenizer_without_the_tokens_is_refused(folder):
    controls = load_tokenizer("bytes").controls
    said = r"data.sources.code.fill_in_the_middle: tokenizer bytes has no <\|fim_prefix\|>; expected one that has"
    with pytest.raises(InputError, match=said):
        Sentinels.of(controls, "bytes", "data.sources.code.fill_in_the_middle")
