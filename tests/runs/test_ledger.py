"""The ledger with real processes: four, one of which is killed, then two. What the devices held is read back."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from data.rows import packing
from data.rows.dataset import open_dataset
from tests.helpers.ledger_run import digest
from tests.helpers.small_run import PATIENCE, free_port, wait_for
from tests.helpers.trajectory_rows import write_runs
from train.config_files import read_config

SCRIPT = pathlib.Path(__file__).parents[1] / "helpers" / "ledger_run.py"
BATCH = 8


def start(config: pathlib.Path, out: pathlib.Path, count: int, first: int, last: int) -> list[subprocess.Popen]:
    coordinator = f"127.0.0.1:{free_port()}"
    started = []
    for number in range(count):
        environment = os.environ | {
            "MAVERICK_COORDINATOR": coordinator,
            "MAVERICK_NUM_PROCESSES": str(count),
            "MAVERICK_PROCESS_ID": str(number),
        }
        with (out / f"log-{count}-{number}").open("w") as log:
            words = [sys.executable, str(SCRIPT), str(config), str(out), str(first), str(last)]
            started.append(subprocess.Popen(words, stdout=log, stderr=log, env=environment))
    return started


def ended(processes: list[subprocess.Popen]) -> list[int]:
    try:
        return [process.wait(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()


def given(out: pathlib.Path, count: int) -> dict[int, dict[int, str]]:
    """Digest by step and row, of the processes of a job of `count`; no row was given to two devices."""
    found: dict[int, dict[int, str]] = collections.defaultdict(dict)
    for number in range(count):
        lines = (out / f"{count}-{number}.jsonl").read_text().splitlines(keepends=True)
        for line in (json.loads(line) for line in lines if line.endswith("\n")):
            for row, text in line["rows"]:
                assert row not in found[line["step"]], "two devices were given one row"
                found[line["step"]][row] = text
    return found


@pytest.mark.slow
def test_four_processes_of_which_one_is_killed_then_two_learn_each_position_once_per_epoch(tmp_path):
    write_runs(tmp_path / "runs.jsonl", 24)
    shop = {"path": str(tmp_path / "runs.jsonl"), "format": "trajectories", "weight": 2.0,
            "trajectories": {"filter": {"min_reward": 0.5}}}  # fmt: skip
    config = tmp_path / "ledger.yaml"
    config.write_text(
        f"""
base: pretrain_tiny
run: {{name: ledger, seed: 3}}
data:
  sources:
    prose: {{path: "package:tinyshakespeare"}}
    shop: {json.dumps(shop)}
  sequence_length: 256
  batch_size: {BATCH}
  packing: best_fit
  held_out_fraction: 0.9
  tokenizer: bytes
  cache_dir: {tmp_path}/cache
"""
    )
    parsed = read_config(str(config), [])
    data = open_dataset(parsed.data, "train", seed=parsed.run.seed)
    steps = 30
    four = start(config, tmp_path, 4, 0, steps)
    wait_for(lambda: (tmp_path / "saved").exists() and int((tmp_path / "saved").read_text()) >= 9, four[0])
    four[2].kill()
    codes = ended(four)
    saved = int((tmp_path / "saved").read_text())
    assert codes[2] == -signal.SIGKILL and saved < steps
    assert ended(start(config, tmp_path, 2, saved, steps)) == [0, 0], (tmp_path / "log-2-0").read_text()

    ledger = {step: rows for step, rows in given(tmp_path, 4).items() if step <= saved}
    ledger |= {step: rows for step, rows in given(tmp_path, 2).items() if step > saved}
    assert sorted(ledger) == list(range(1, steps + 1)) and all(len(rows) == BATCH for rows in ledger.values())

    learned: dict[tuple[str, int], np.ndarray] = {}
    for step, number in ((step, number) for step in ledger for number in range(BATCH)):
        index = (step - 1) * BATCH + number
        row = data.row(index)
        assert ledger[step][number] == digest(row["tokens"], row["labels"], row["loss_weights"])
        source, at = data.locate(index)
        places = packing.places_of(source.pieces(at), source.cell)
        key = source.name, at // source.plan.num_rows
        np.add.at(learned.setdefault(key, np.zeros(source.store["tokens"].size, int)), places.label[places.counts], 1)
    assert all(counts.max() == 1 for counts in learned.values()), "a position was learned twice in an epoch"
    shop = next(source for source in data.sources if source.name == "shop")
    offsets = shop.store["offsets"]
    expected = np.zeros(shop.store["tokens"].size, int)
    expected[offsets[shop.documents.start] : offsets[shop.documents.stop]] = 1
    expected[offsets[:-1]] = 0  # nothing comes before the first token of a document
    complete = sum(data.locate(i)[0] is shop for i in range(steps * BATCH)) // shop.plan.num_rows
    assert complete >= 2
    for epoch in range(complete):
        np.testing.assert_array_equal(learned["shop", epoch], expected)
