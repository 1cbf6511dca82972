"""Malformed records of many kinds: each stops the reading or is skipped and counted, with file, record and reason."""

import json
import logging

import pytest

from data.trajectories import Tally, find_actions, read_trajectories
from data.trajectories import files as files_module
from maverick_jax.errors import InputError, harmless
from tests.helpers import trajectory_samples as samples

MESSAGES = "messages"


def openai(change, **top):
    """A record in OpenAI's format with changed messages: 0 system, 1 user, 2 call, 3 result, ... 8 answer."""
    record = samples.openai() | top
    record[MESSAGES] = change(record[MESSAGES]) or record[MESSAGES]
    return json.dumps(record)


def with_call(**function):
    def change(messages):
        messages[4]["tool_calls"][0]["function"] |= function

    return openai(change)


def on(index, **fields):
    return openai(lambda messages: messages[index].update(fields))


def without(index):
    return openai(lambda messages: messages.pop(index) and None)


def of(name, change):
    record = samples.ALL[name]()
    change(record)
    return json.dumps(record)


def nested(depth):
    return json.dumps(samples.openai())[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"


def walks(messages):
    messages[4]["tool_calls"][0]["function"]["name"] = "walk"
    messages[5] = {"role": "tool", "content": "Well."}


def first_call_twice(messages):
    messages[2]["tool_calls"] *= 2


KINDS = {
    "orphan result": (without(4), r"messages\[4\]: a tool result, but every call before it already has one"),
    "second result": (openai(lambda m: m.insert(4, dict(m[3]))), r"messages\[4\]: a tool result, but every call"),
    "call without result": (without(5), r"messages\[4\]: call 0 \('book'\) has no result before messages\[5\]"),
    "result of another call": (on(5, tool_call_id="c9"), r"messages\[5\]: tool_call_id: 'c9'; expected a call .*'c2'"),
    "result of another tool": (on(5, name="find"), r"messages\[5\]: name: 'find'; expected 'book'"),
    "arguments are not JSON": (with_call(arguments='{"a": '), r"messages\[4\]: .*function.arguments: not JSON"),
    "arguments are not an object": (with_call(arguments="[1]"), r"messages\[4\]: .*arguments: expected an object"),
    "arguments with a duplicate key": (with_call(arguments='{"a": 1, "a": 2}'), r"key 'a' is given twice"),
    "arguments that are deep": (with_call(arguments='{"a": ' + "[" * 99 + "]" * 99 + "}"), "nested deeper than 64"),
    "call without a name": (with_call(name=""), r"messages\[4\]: .*name: expected the name of a tool"),
    "unknown tool": (openai(walks), r"messages\[4\]: call 0: 'walk': unknown tool; declared tools: book, find"),
    "two calls with the same id": (openai(first_call_twice), r"messages\[2\]: tool_calls: two calls .* same id"),
    "too many calls": (openai(lambda m: m[2].update(tool_calls=m[2]["tool_calls"] * 300)), "300; expected at most 256"),
    "unknown role": (on(1, role="usr"), r"messages\[1\]: role: 'usr'; expected one of .*; did you mean user"),
    "role that is not text": (on(1, role=1), r"messages\[1\].role: expected text, got an integer"),
    "system in the middle": (on(8, role="system"), r"messages\[8\]: role: only the first message may be a system"),
    "a user that calls": (on(2, role="user", content="x"), r"messages\[2\].tool_calls: calls in a place where this"),
    "empty turn": (on(8, content=" "), r"messages\[8\]: an empty turn: no text and no call"),
    "turn without content": (openai(lambda m: m[8].pop("content") and None), r"messages\[8\]: an empty turn"),
    "no assistant": (openai(lambda m: m[:2]), "messages: no message of the assistant"),
    "no messages": (openai(lambda m: m.clear()), "messages: empty"),
    "messages is not a list": ('{"messages": {"role": "user"}}', "is not of format openai"),
    "a message that is not an object": (openai(lambda m: m.append("hello")), r"messages\[9\]: expected an object"),
    "huge text": (on(8, content="x" * ((1 << 24) + 1)), r"messages\[8\]: content: 16,777,217 characters"),
    "content of a wrong kind": (on(8, content=3), r"messages\[8\]: content: expected a list, got int"),
    "an image": (on(1, content=[{"type": "image_url", "image_url": "x"}]), r"messages\[1\].content\[0\]: an image"),
    "deep nesting": (nested(100), "extra: nested deeper than 64 levels"),
    "deeper nesting than JSON is read": (nested(100_000), "nested too deeply"),
    "broken JSON": ('{"messages": [', "not JSON: Expecting value"),
    "truncated line": (json.dumps(samples.openai())[:-20], "not JSON"),
    "duplicate key": ('{"messages": [], "messages": []}', "key 'messages' is given twice"),
    "NaN": (openai(lambda m: None, reward=float("nan")), "NaN is not a JSON number"),
    "not an object": ("[1, 2]", "record: expected an object, got a list"),
    "half a character": (on(8, content="\ud800"), r"messages\[8\]: content: .*"),
    "huge integer": ('{"messages": [], "x": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
    "mixed formats": (json.dumps(samples.tau_bench()), "is not of format openai, which .*: it looks like tau_bench"),
    "reward of a wrong kind": (openai(lambda m: None, reward="high"), "reward: expected a number, got text"),
    "negative weight": (on(8, weight=-1), r"messages\[8\]: weight: -1; expected 0 or more"),
    "tool declared twice": (openai(lambda m: None, tools=samples.TOOLS * 2), "tool 2: name: 'find' is also the name"),
    "tools that are not JSON": (openai(lambda m: None, tools="[{"), "tools: not JSON"),
    "too long an id": (openai(lambda m: None, id="x" * 5000), "provenance.id: expected a text of at most"),
}  # fmt: skip
OTHERS = {
    "tau_bench: traj": ("tau_bench", lambda r: r["traj"].pop(4), r"traj\[4\]: a tool result, but every call"),
    "sharegpt: speaker": ("sharegpt", lambda r: r["conversations"][0].update({"from": "humn"}),
                          r"conversations\[0\].from: 'humn'; expected one of .*did you mean human"),
    "sharegpt: call": ("sharegpt", lambda r: r["conversations"][1].update(value="go"),
                       r"conversations\[1\].value: call: not JSON"),
    "sharegpt: no result": ("sharegpt", lambda r: r["conversations"].pop(4),
                            r"conversations\[3\]: call 1 .* no result"),
    "atif: step numbers": ("atif", lambda r: r["steps"].pop(2), r"steps\[2\].step_id: 4; expected 3"),
    "atif: source": ("atif", lambda r: r["steps"][1].update(source="robot"), r"steps\[1\].source: 'robot'; expected"),
    "atif: version": ("atif", lambda r: r.update(schema_version="ATIF-v9"), "schema_version: 'ATIF-v9'; expected ATIF"),
    "atif: link": ("atif", lambda r: r["steps"][2]["observation"]["results"][0].update(source_call_id="c9"),
                   r"steps\[2\].observation.results\[0\]: tool_call_id: 'c9'; expected"),
    "atif: arguments": ("atif", lambda r: r["steps"][2]["tool_calls"][0].update(arguments=[1]),
                        r"steps\[2\].tool_calls\[0\].arguments: expected an object or text, got a list"),
    "adp: class": ("adp", lambda r: r["content"][1].update(class_="text"), r"content\[1\].class_: 'text'; expected"),
    "adp: image": ("adp", lambda r: r["content"][1].update(class_="image_observation"),
                   r"content\[1\].class_: an image"),
    "adp: link": ("adp", lambda r: r["content"][3].update(tool_call_id="z"), r"content\[3\]: tool_call_id: 'z'"),
    "swe_agent: history": ("swe_agent", lambda r: r.update(history=3), "history: expected a list, got an integer"),
    "swe_agent: results": ("swe_agent", lambda r: r["history"][4].update(tool_call_ids=["a", "b"]),
                           r"history\[4\].tool_call_ids: one result for 2 calls"),
    "ours: version": ("ours", lambda r: r.update(version=2), "version: 2; expected 1"),
    "ours: error": ("ours", lambda r: r["messages"][8].update(error=True, extra={"error": 1}),
                    r"messages\[8\].error: also given in `extra`"),
    "ours: provenance": ("ours", lambda r: r["provenance"].update(record=-1), "provenance.record: -1; expected"),
    "ours: outcome": ("ours", lambda r: r["outcome"].update(rewards=1), "outcome.rewards: unknown field"),
}  # fmt: skip
FORMATS = {kind: "openai" for kind in KINDS} | {kind: name for kind, (name, *_) in OTHERS.items()}
LINES = {kind: line for kind, (line, _) in KINDS.items()} | {k: of(n, change) for k, (n, change, _) in OTHERS.items()}
REASONS = {kind: reason for kind, (_, reason) in KINDS.items()} | {k: reason for k, (*_, reason) in OTHERS.items()}


@pytest.mark.parametrize("kind", list(LINES))
def test_each_kind_stops_or_is_skipped_and_counted(tmp_path, kind, caplog):
    """The malformed record is between two good ones, which are always read."""
    name = FORMATS[kind]
    good = json.dumps(samples.ALL[name]())
    path = tmp_path / "runs.jsonl"
    path.write_text(f"{good}\n\n{LINES[kind]}\n{good}\n")
    with pytest.raises(InputError, match=rf"runs.jsonl: record 1, line 3: (?s:.*){REASONS[kind]}") as stopped:
        list(read_trajectories(path))
    assert len(str(stopped.value)) < 2_000
    tally = Tally()
    with caplog.at_level(logging.WARNING):
        found = list(read_trajectories(path, malformed="skip", tally=tally))
    assert [t.provenance.record for t in found if name != "ours"] == [0, 2] * (name != "ours")
    assert len(found) == 2
    assert (tally.records, tally.trajectories, tally.malformed) == (3, 2, 1)
    (problem,) = tally.problems
    assert (problem.file, problem.record, problem.line) == ("runs.jsonl", 1, 3)
    assert harmless(str(problem)) in caplog.text


def test_only_trailing_results_may_be_missing(tmp_path):
    """No chat format writes which call a result answers, so a gap cannot be represented."""
    path = tmp_path / "runs.jsonl"
    record = samples.openai()
    calls = [samples.openai_call("find", {"to": i}, i) for i in "ab"]
    for answered, taken in (("a", True), ("b", False)):
        result = {"role": "tool", "tool_call_id": answered, "content": "x"}
        record["messages"][2:] = [{"role": "assistant", "tool_calls": calls}, result]
        path.write_text(json.dumps(record))
        if taken:
            assert len(next(read_trajectories(path)).steps) == 4
        else:
            with pytest.raises(InputError, match=r"messages\[2\]: call 0 \('find'\) has no result"):
                list(read_trajectories(path))


def test_a_refused_call_of_an_undeclared_tool_is_a_failed_call(tmp_path):
    record = samples.openai()
    record["messages"][4]["tool_calls"][0]["function"]["name"] = "walk"
    record["messages"][5] = {"role": "tool", "content": "Error: no such tool"}
    (tmp_path / "runs.jsonl").write_text(json.dumps(record))
    (found,) = read_trajectories(tmp_path)
    assert [(a.call.name, a.failed) for a in find_actions(found)][1] == ("walk", True)


def test_invalid_utf8_and_long_lines_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "MAX_LINE", 5_000)
    good = json.dumps(samples.openai()).encode()
    assert len(good) < 5_000
    path = tmp_path / "runs.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + good + b"\n" + b"\xff\xfe\n" + b"[" * 9_000_000 + b"\n" + good + b"\n" + b" " * 6_000
    )
    tally = Tally()
    found = list(read_trajectories(path, malformed="skip", tally=tally))
    assert [t.provenance.line for t in found] == [1, 4]
    assert [p.line for p in tally.problems][:2] == [2, 3]
    assert "not UTF-8: byte 0" in tally.problems[0].reason
    assert tally.problems[1].reason == "the line is longer than 5,000 bytes"
    assert tally.records == tally.trajectories + tally.malformed


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "", "the file is empty"),
        ("a.jsonl", "\n \n", "the file is empty"),
        ("a.json", "[]", "an empty list"),
        ("a.json", '[{"messages"', "not JSON"),
        ("a.json", "3", "unknown format: it is int, not an object"),
        ("a.traj", '{"turns": 1}', r"unknown format: it has 'turns'. Tried ours: .*openai: .*tau_bench: .*adp: "),
        (
            "a.jsonl",
            '{"messages": [{"role": "user"}], "traj": [], "task_id": 1}',
            "could be openai or tau_bench; choose one",
        ),
    ],
)
def test_files_without_a_trajectory(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: record 0.*: {reason}"):
        list(read_trajectories(tmp_path))
    tally = Tally()
    assert list(read_trajectories(tmp_path, malformed="skip", tally=tally)) == []
    assert (tally.records, tally.malformed) == (1, 1)


def test_a_document_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "MAX_DOCUMENT", 100)
    (tmp_path / "a.json").write_text(json.dumps([samples.tau_bench()]))
    with pytest.raises(InputError, match=r"a.json: record 0: a document of more than 100 bytes; use one record per"):
        list(read_trajectories(tmp_path))


def test_every_prefix_of_a_record_is_read_or_a_problem(tmp_path):
    """A truncated record is a trajectory or a problem, never another exception."""
    path = tmp_path / "runs.jsonl"
    line = json.dumps(samples.ours())
    path.write_text("\n".join(line[:end] for end in range(1, len(line) + 1)) + "\n")
    tally = Tally()
    found = list(read_trajectories(path, format="ours", malformed="skip", tally=tally))
    assert len(found) == 1 and tally.malformed == len(line) - 1


def test_unknown_formats_and_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"format 'sharegtp'; expected one of .*; did you mean sharegpt"):
        list(read_trajectories(tmp_path, format="sharegtp"))
    (tmp_path / "runs.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"no such file or folder .*; did you mean runs.jsonl"):
        list(read_trajectories(tmp_path / "run.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder contains no file that ends in .json, .jsonl, .ndjson, .traj"):
        list(read_trajectories(tmp_path / "empty"))


@pytest.mark.parametrize("start", [b"PAR1", b"ARROW1"])
@pytest.mark.parametrize("name", ["chats.parquet", "chats"])
def test_tables_are_refused_by_their_first_bytes(tmp_path, start, name):
    (tmp_path / name).write_bytes(start + b"\x00\xff\n{}")
    for malformed in ("stop", "skip"):
        with pytest.raises(
            InputError, match=f"{name}: (Parquet|Arrow) is not read as trajectories; write one JSON rec"
        ):
            list(read_trajectories(tmp_path / name, malformed=malformed))
