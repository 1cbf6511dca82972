"""The ledger: packed, mixed and filtered data, given to the devices of 4, then 2, then 8 hosts, with restarts in the
middle, has each position of each source once per epoch."""

import collections
import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data.config import DataConfig
from data.rows import packing
from data.rows.dataset import Dataset, open_dataset
from data.rows.fields import Row
from data.rows.placement import rows_of_process
from data.trajectories.formats import ours
from maverick_jax.sharding import BATCH_AXES, make_mesh
from tests.data.rows.test_placement import SomeOf
from tests.helpers.trajectory_rows import short_run, write_runs

T, BATCH = 256, 8
MESHES = {4: {"data": 4, "tensor": 2}, 2: {"data": 2, "fsdp": 2, "tensor": 2}, 8: {"data": 8}}


@dataclasses.dataclass(frozen=True)
class WherePlacesComeFrom:
    """More fields of a row: its source and epoch, and for each place the token there and the token learned there, by
    their numbers in the source; -1 where there is none."""

    data: Dataset

    def __call__(self, index: int, row: Row) -> Row:
        source, at = self.data.locate(index)
        places = packing.places_of(source.pieces(at), source.cell)
        token, label = np.full(T, -1), np.full(T, -1)
        token[places.place], label[places.place] = places.token, np.where(places.counts, places.label, -1)
        number = np.array(self.data.sources.index(source))
        return {"source": number, "epoch": np.array(at // source.plan.num_rows), "token": token, "label": label}


def opened(folder, packing_kind: str) -> Dataset:
    """As a new process opens it: prose of documents of many lengths, and twice as many rows of trajectories, of which a
    filter drops a quarter and the duplicates."""
    runs, prose = folder / "runs.jsonl", folder / "prose.jsonl"
    if not runs.exists():
        again = "".join(ours.write(short_run(i)) + "\n" for i in (1, 5, 9))
        write_runs(runs, 40, again)
        random = np.random.default_rng(5)
        text = lambda n: "".join(chr(c) for c in random.integers(97, 123, n))
        prose.write_text("".join(json.dumps({"text": text(n)}) + "\n" for n in random.integers(1, 900, 60)))
    shop = {"path": str(runs), "format": "trajectories", "weight": 2.0, "trajectories": {"filter": {"min_reward": 0.5}}}
    config = {
        "sources": {"prose": {"path": str(prose)}, "shop": shop}, "sequence_length": T, "batch_size": BATCH,
        "held_out_fraction": 0.0, "shuffle": True, "packing": packing_kind, "cache_dir": str(folder / "cache"),
    }  # fmt: skip
    found = open_dataset(DataConfig.model_validate(config), "train", seed=3)
    return found.with_fields(WherePlacesComeFrom(found))


class Ledger:
    """What was given to devices, by step; a job that dies takes the steps after its checkpoint with it."""

    def __init__(self):
        self.rows: dict[int, dict[int, Row]] = collections.defaultdict(dict)

    def job(self, folder, packing_kind: str, hosts: int, start: int, stop: int, saved: int, accumulate: int) -> None:
        """The updates `start` to `stop` by processes of `hosts` hosts, which die after saving `saved`."""
        sharding = NamedSharding(make_mesh(MESHES[hosts], jax.devices()[:8]), PartitionSpec(None, BATCH_AXES, None))
        devices = list(sharding.mesh.devices.flat)
        for host in range(hosts):
            mine = SomeOf(sharding, devices[host * 8 // hosts : (host + 1) * 8 // hosts])
            numbers = rows_of_process(mine, (accumulate, BATCH // accumulate, T))
            assert len(numbers) == BATCH // hosts
            with opened(folder, packing_kind).batches(numbers, BATCH, start, stop - start) as batches:
                for step, batch in enumerate(batches, start):
                    for at, number in enumerate(numbers):
                        assert number not in self.rows[step], "two hosts were given one row"
                        self.rows[step][number] = {name: field[at] for name, field in batch.items()}
        for step in [step for step in self.rows if step >= saved]:
            del self.rows[step]

    def learned(self, data: Dataset) -> dict[tuple[int, int], np.ndarray]:
        """How often each token of a source was learned, by (source, epoch)."""
        found: dict[tuple[int, int], np.ndarray] = {}
        for row in (row for step in sorted(self.rows) for row in self.rows[step].values()):
            store = data.sources[int(row["source"])].store["tokens"]
            there = row["token"] >= 0
            np.testing.assert_array_equal(row["tokens"][there], store[row["token"][there]])
            counts = row["label"] >= 0
            np.testing.assert_array_equal(row["labels"][counts], store[row["label"][counts]])
            key = int(row["source"]), int(row["epoch"])
            np.add.at(found.setdefault(key, np.zeros(store.size, int)), row["label"][counts], 1)
        return found


def steps_of_an_epoch(data: Dataset) -> int:
    """Updates after which every source has been read to its end at least once."""
    left = {source.name: source.plan.num_rows for source in data.sources}
    index = 0
    while any(left.values()):
        source, at = data.locate(index)
        left[source.name] -= at < source.plan.num_rows
        index += 1
    return -(-index // BATCH)


@pytest.mark.parametrize(("packing_kind", "accumulate"), [("concatenate", 1), ("best_fit", 2)])
def test_each_position_is_learned_once_per_epoch_over_4_2_and_8_hosts(packing_kind, accumulate, tmp_path):
    data, ledger = opened(tmp_path, packing_kind), Ledger()
    stop = steps_of_an_epoch(data)
    third = stop // 3
    assert third >= 3
    ledger.job(tmp_path, packing_kind, 4, 0, third + 1, third - 1, accumulate)
    ledger.job(tmp_path, packing_kind, 2, third - 1, 2 * third + 2, 2 * third, accumulate)
    ledger.job(tmp_path, packing_kind, 8, 2 * third, stop, stop, 1)
    assert sorted(ledger.rows) == list(range(stop)) and all(len(rows) == BATCH for rows in ledger.rows.values())

    learned = ledger.learned(data)
    for number, source in enumerate(data.sources):
        offsets = source.store["offsets"]
        expected = np.ones(source.store["tokens"].size, int)
        expected[offsets[:-1]] = 0  # nothing comes before the first token of a document
        epochs = sorted(epoch for of, epoch in learned if of == number)
        read = sum(int(row["source"]) == number for rows in ledger.rows.values() for row in rows.values())
        complete = read // source.plan.num_rows
        assert complete >= 1 and len(epochs) - complete in (0, 1)
        for epoch in range(complete):
            np.testing.assert_array_equal(learned[number, epoch], expected)
        for epoch in epochs[complete:]:
            assert (learned[number, epoch] <= expected).all()  # an epoch that has begun: nothing twice
    assert data.sources[1].store["offsets"].size - 1 == 30  # a quarter of 40 dropped, and no duplicate kept


def test_a_row_that_is_lost_or_given_twice_is_seen(tmp_path):
    """The ledger itself can fail."""
    data, ledger = opened(tmp_path, "best_fit"), Ledger()
    ledger.job(tmp_path, "best_fit", 2, 0, 3, 3, 1)
    whole = ledger.learned(data)
    with pytest.raises(AssertionError, match="two hosts were given one row"):
        ledger.job(tmp_path, "best_fit", 2, 2, 3, 3, 1)
    lost = ledger.rows[1].pop(0)
    assert any((ledger.learned(data)[key] != whole[key]).any() for key in whole)
    ledger.rows[1][0] = lost | {"tokens": lost["tokens"] + 1}
    with pytest.raises(AssertionError):
        ledger.learned(data)
