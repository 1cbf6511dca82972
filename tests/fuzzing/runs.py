"""Trajectories as a target: edited files of every format. Accepted ones must survive a round trip in our format."""

import pathlib

from hypothesis import strategies as st

from data.trajectories import Tally, loss_weights, read_trajectories
from data.trajectories.fields import FieldCounts, Fields
from data.trajectories.files import parse
from data.trajectories.formats import ours
from maverick_jax.errors import InputError
from maverick_jax.text.chat import render
from tests.fuzzing.harness import Target
from tests.fuzzing.mutations import damaged, dumps, json_files
from tests.fuzzing.texts import bytes_with_thoughts
from tests.helpers.trajectory_samples import ALL


def runs_target(scratch: pathlib.Path) -> Target:
    """Files of trajectories, as JSON lines and as one document."""
    records = [make() for make in ALL.values()]
    one = st.sampled_from(records).flatmap(json_files)
    good = st.sampled_from([dumps(record).encode() for record in records])
    lines = st.lists(st.one_of(one.map(lambda data: data.replace(b"\n", b" ")), good), max_size=3).map(b"\n".join)
    documents = st.one_of(one, json_files(records[:2]), lines.flatmap(damaged))
    examples = st.tuples(st.sampled_from(["a.jsonl", "a.json", "a"]), st.one_of(one, lines, documents))
    return Target("runs", examples, lambda example: _read(scratch, *example), seconds=4)


def _read(scratch: pathlib.Path, name: str, content: bytes) -> bool:
    path = scratch / name
    path.write_bytes(content)
    tally = Tally()
    found = list(read_trajectories(path, malformed="skip", tally=tally))
    assert tally.records == tally.trajectories + tally.malformed and tally.trajectories == len(found)
    for trajectory in found:
        again = ours.read(Fields(parse(ours.write(trajectory).encode()), "", FieldCounts("refuse")))
        assert again == trajectory
        weights = loss_weights(trajectory, _rendered(trajectory))
        assert (weights >= 0).all()
    for problem in tally.problems:
        str(InputError(str(problem))).encode("utf-8")
    return bool(found)


def _rendered(trajectory):
    return render(trajectory.conversation, bytes_with_thoughts(), "meta_json")
