"""Stored teacher targets: complete or refused, written once, and used only with the data they were made from."""

import os
import pathlib
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data.targets.format import OPEN_PARTS, Targets, content_hash, part_file
from maverick_jax.errors import InputError
from tests.helpers.small_run import PATIENCE, REPOSITORY, contents
from tests.helpers.stub_targets import HEADER, arrays_of, row_of, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Targets written without interruption. Do not change them."""
    folder = tmp_path_factory.mktemp("targets") / "whole"
    write(folder)
    return folder


def assert_rows_are_readable(targets: Targets):
    for index in range(HEADER.rows):
        found, expected = targets.row(index, row_of(index)), arrays_of(index)
        assert list(found) == list(expected)
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
            assert array.dtype == expected[name].dtype


def test_written_targets_are_read_back(whole):
    targets = Targets.open(whole)
    assert targets.header == HEADER and targets.sums == {"positions": 8.0 * HEADER.rows}
    assert_rows_are_readable(targets)
    per_token = 4 * (2 + 2) + 4 * 4 + 2 * (2 + 2)
    assert HEADER.bytes_per_token == pytest.approx(per_token + (40 + 4) / 8)
    assert {path.suffix for path in whole.iterdir()} == {".json", ".array_record"}  # nothing is left over


def test_targets_are_pickled_as_their_path(whole):
    targets = Targets.open(whole)
    targets.row(0, row_of(0))
    sent = pickle.dumps(targets)
    assert len(sent) < 500
    assert_rows_are_readable(pickle.loads(sent))  # noqa: S301 (our own)


PARTS = HEADER.model_copy(update={"rows": 60, "rows_per_part": 1})


def open_parts(folder: pathlib.Path) -> int:
    """Files of the folder that this process has open."""
    found = 0
    for link in pathlib.Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(link).startswith(str(folder))
        except OSError:
            continue  # the listing's own descriptor
    return found


@pytest.mark.parametrize("order", ["forward", "backward", "random"])
def test_only_a_few_parts_are_open_at_a_time(tmp_path, order):
    targets = write(tmp_path / "many", PARTS)
    rows = list(range(PARTS.rows))
    {"forward": lambda: None, "backward": rows.reverse, "random": lambda: random.Random(0).shuffle(rows)}[order]()
    for index in rows:
        found = targets.row(index, row_of(index))
        np.testing.assert_array_equal(found["ids"], arrays_of(index, PARTS)["ids"])
        assert 1 <= open_parts(tmp_path) <= OPEN_PARTS


def test_more_parts_than_a_process_may_open_are_read(tmp_path):
    targets = write(tmp_path / "many", PARTS)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2 * OPEN_PARTS, limits[1]))
    try:
        for index in range(PARTS.rows):
            np.testing.assert_array_equal(targets.row(index, row_of(index))["ids"], arrays_of(index, PARTS)["ids"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_threads_read_parts_that_others_close(tmp_path):
    targets = write(tmp_path / "many", PARTS)

    def read(first: int) -> bool:
        rows = [(first * 7 + step * 13) % PARTS.rows for step in range(100)]
        return all((targets.row(i, row_of(i))["ids"] == arrays_of(i, PARTS)["ids"]).all() for i in rows)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(8)))
    assert open_parts(tmp_path) <= OPEN_PARTS


def test_wide_tokens_and_float32(tmp_path):
    header = HEADER.model_copy(update={"vocab_size": 202_048, "dtype": "float32", "tail_samples": 0})
    targets = write(tmp_path / "wide", header)
    assert targets
    found = targets.row(3, row_of(3))
    assert found["ids"].dtype == np.uint32 and found["log_probs"].dtype == np.float32
    assert "sample_ids" not in found
    np.testing.assert_array_equal(found["ids"], arrays_of(3, header)["ids"])


def test_several_jobs_share_a_folder(whole, tmp_path):
    shared = tmp_path / "shared"
    assert write(shared, shard=(1, 2)) is None
    with pytest.raises(InputError, match=r"incomplete: 12 of 22 rows are missing \(3 of 6 parts\); continue with `"):
        Targets.open(shared)
    found = write(shared, shard=(0, 2))
    assert found and found.digest == Targets.open(whole).digest
    assert contents(shared) == contents(whole)


def test_two_processes_do_not_write_one_part(tmp_path):
    from data.targets.writer import TargetsWriter

    one, other = (TargetsWriter.open(tmp_path, HEADER) for _ in range(2))
    refused = pytest.raises(InputError, match=r"part-00000.array_record: another process is writing it")
    with pytest.raises(ValueError, match="part 0 ends after row -1"), one.part(0), refused, other.part(0):
        pass
    assert not list(tmp_path.glob("part-*"))


def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
    chance, killed = random.Random(5), 0
    folder = tmp_path / "killed"
    words = [sys.executable, "-m", "tests.helpers.stub_targets", str(folder)]
    for _ in range(4):
        process = subprocess.Popen([*words, "0.02"], cwd=REPOSITORY)
        end = time.monotonic() + PATIENCE
        while not (folder / "header.json").exists() and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.01, 0.2))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 2 and not (folder / "contents.json").exists()
    subprocess.run([*words, "0"], cwd=REPOSITORY, check=True)
    assert_rows_are_readable(Targets.open(folder))
    same = lambda folder: {name: digest for name, digest in contents(folder).items() if not name.endswith(".lock")}
    assert same(folder) == same(whole)


def test_an_error_leaves_no_part(tmp_path):
    from data.targets.writer import TargetsWriter

    writer, bad = TargetsWriter.open(tmp_path, HEADER), arrays_of(0)
    bad["entropy"][3] = np.nan
    with pytest.raises(InputError, match="the teacher's probabilities are not finite"), writer.part(0) as part:
        part.add(0, row_of(0), bad, {})
    with pytest.raises(ValueError, match="row 2 after row -1"), writer.part(0) as part:
        part.add(2, row_of(2), arrays_of(2), {})
    assert [path.name for path in tmp_path.iterdir()] == ["header.json"]


def test_a_folder_with_another_header_is_not_changed(whole):
    before = contents(whole)
    other = HEADER.model_copy(update={"teacher": "c" * 64, "top_k": 5})
    with pytest.raises(InputError, match=r"(?s)with other settings; nothing was changed:\n  top_k: 4 there, 5 here\n"):
        write(whole, other)
    assert contents(whole) == before


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(whole, tmp_path):
    import shutil

    return pathlib.Path(shutil.copytree(whole, tmp_path / "copy"))


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere: no teacher targets here; make them with `maverick data targets"):
        Targets.open(tmp_path / "nowhere")


def test_a_truncated_file(copy):
    file = part_file(copy, 2)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"part-00002.array_record: has [\d,]+ bytes; expected [\d,]+ bytes"):
        Targets.open(copy)
    file.unlink()
    with pytest.raises(InputError, match=r"part-00002.array_record: is missing"):
        Targets.open(copy)


def test_a_damaged_record(copy):
    file = part_file(copy, 1)
    content = file.read_bytes()
    at = content.index(arrays_of(5)["ids"].tobytes())
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(InputError, match=r"part-00001.array_record: the record of row 5: "):
        Targets.open(copy).row(5, row_of(5))


def test_swapped_parts(copy):
    one, other = part_file(copy, 1), part_file(copy, 2)
    one.rename(copy / "aside")
    other.rename(one)
    (copy / "aside").rename(other)
    with pytest.raises(InputError, match=r"part-00001.array_record: the record of row 4: belongs to row 8"):
        Targets.open(copy).row(4, row_of(4))


def test_missing_rows_and_rows_of_other_data(whole):
    targets = Targets.open(whole)
    with pytest.raises(InputError, match="holds rows 0 to 21, but row 22 is needed"):
        targets.row(22, row_of(22))
    for name in ("tokens", "labels", "positions", "segment_ids"):
        row = row_of(7)
        row[name] = row[name].copy()
        row[name][5] += 1
        with pytest.raises(InputError, match="made from other data: its row 7 has other tokens"):
            targets.row(7, row)
    assert content_hash({**row_of(7), "loss_weights": np.zeros(8)}) == content_hash(row_of(7))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version":1', '"version":2', r"contents.json: header.version: Input should be 1"),
        ('"top_k":4', '"top_k":999', "contents.json: header: Value error, top_k 999 is more than the vocabulary"),
        ('"top_k":4', '"top_k":4,"top_k":5', "contents.json: key 'top_k' is given twice"),
        ('"rows":22', '"rows":99999999', "contents.json: 6 parts; its header declares 25000000"),
        ('"temperature":1.0', '"temperature":NaN', "contents.json: NaN is not a JSON number"),
        ("{", "[" * 100_000, "contents.json: "),
    ],
)
def test_a_malformed_contents_file(old, new, message, copy):
    path = copy / "contents.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        Targets.open(copy)


def test_a_header_with_another_record_size(copy):
    path = copy / "contents.json"
    path.write_text(path.read_text().replace('"sequence_length":8', '"sequence_length":2147483648', 1))
    with pytest.raises(InputError, match="the record of row 0: 364 bytes; expected "):
        Targets.open(copy).row(0, row_of(0))
