"""`maverick data convert`: complete output or none, nothing overwritten, every record counted."""

import json

import pytest

from data.trajectories import convert, read_trajectories
from launch.cli import main
from maverick_jax.errors import InputError
from tests.helpers import trajectory_samples as samples


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "runs"
    path.mkdir()
    (path / "a.jsonl").write_text(f"{json.dumps(samples.openai())}\nnot JSON\n{json.dumps(samples.openai())}\n")
    (path / "b.traj").write_text(json.dumps(samples.swe_agent()))
    return path


def test_counts_and_output(source, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["data", "convert", str(source), str(out), "--malformed", "skip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {k: found[k] for k in ("files", "records", "trajectories", "malformed", "messages", "calls", "failed",
                                  "recovered", "recoveries")} == {
        "files": 2, "records": 4, "trajectories": 3, "malformed": 1, "messages": 28, "calls": 9, "failed": 3,
        "recovered": 3, "recoveries": 3}  # fmt: skip
    assert found["formats"] == {"openai": 2, "swe_agent": 1}
    assert [(p["file"], p["record"], p["line"]) for p in found["problems"]] == [("a.jsonl", 1, 2)]
    again = list(read_trajectories(out))
    assert again == list(read_trajectories(source, malformed="skip"))
    assert [t.provenance.file for t in again] == ["a.jsonl", "a.jsonl", "b.traj"]


def test_printed_table(source, tmp_path, capsys):
    assert main(["data", "convert", str(source), str(tmp_path / "out"), "--malformed", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "malformed" in printed and "formats: openai (2), swe_agent (1)" in printed
    assert "left out (duplicates, padding): " in printed


def test_a_malformed_record_stops_and_leaves_nothing(source, tmp_path, capsys):
    assert main(["data", "convert", str(source), str(tmp_path / "out.jsonl")]) == 78
    assert "a.jsonl: record 1, line 2: not JSON" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_an_existing_file_is_not_overwritten(source, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    assert main(["data", "convert", str(source), str(out)]) == 78
    assert "already exists; choose another path" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["data", "convert", str(source), str(tmp_path / "no" / "out")]) == 78
    assert "no such folder" in capsys.readouterr().err


def test_a_file_created_meanwhile_is_not_overwritten(source, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"

    def read_slowly(*args, **options):
        yield from read_trajectories(*args, **options)
        out.write_text("mine")

    monkeypatch.setattr(convert, "read_trajectories", read_slowly)
    with pytest.raises(InputError, match="already exists"):
        convert.convert(str(source), str(out), malformed="skip")
    assert out.read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "runs"]


def test_only_malformed_records_is_an_error(tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text("{}\n{}\n")
    assert main(["data", "convert", str(tmp_path / "bad.jsonl"), str(tmp_path / "out"), "--malformed", "skip"]) == 78
    assert (
        "none of its 2 records is a trajectory; the first problem: bad.jsonl: record 0, line 1: "
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_tools_for_trajectories_that_declare_none(tmp_path, capsys):
    (tmp_path / "tau.json").write_text(json.dumps([samples.tau_bench()]))
    (tmp_path / "tools").write_text(json.dumps(samples.TOOLS))
    arguments = ["data", "convert", str(tmp_path / "tau.json"), str(tmp_path / "out.jsonl"), "--tools"]
    assert main([*arguments, str(tmp_path / "tools")]) == 0
    (found,) = read_trajectories(tmp_path / "out.jsonl")
    assert [tool.name for tool in found.tools] == ["find", "book"]
    (tmp_path / "tools").write_text(json.dumps(samples.TOOLS[:1]))
    (tmp_path / "out.jsonl").unlink()
    assert main([*arguments, str(tmp_path / "tools")]) == 78
    assert "'book': unknown tool; declared tools: find" in capsys.readouterr().err
    (tmp_path / "tools").write_text("[{")
    assert main([*arguments, str(tmp_path / "tools")]) == 78
    assert "tools: not JSON" in capsys.readouterr().err


def test_unknown_fields_can_be_refused(tmp_path, capsys):
    (tmp_path / "runs.jsonl").write_text(json.dumps(samples.openai() | {"rewrd": 1}))
    out = str(tmp_path / "out")
    assert main(["data", "convert", str(tmp_path / "runs.jsonl"), out, "--unknown", "refuse"]) == 78
    assert "record 0, line 1: rewrd: unknown field; expected " in (err := capsys.readouterr().err)
    assert "did you mean reward?" in err
    assert main(["data", "convert", str(tmp_path / "runs.jsonl"), out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unknown_fields"] == {"rewrd": 1}
