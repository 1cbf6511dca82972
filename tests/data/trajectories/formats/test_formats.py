"""Formats: every format gives the same trajectory, no field is lost, and our own format round-trips."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.trajectories import FORMATS, Outcome, Provenance, Step, Tally, Trajectory, find_actions, read_trajectories
from data.trajectories.formats import ours
from data.trajectories.meaning import refuse_placeholder
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, Tool, ToolCall
from tests.helpers import trajectory_samples as samples


@pytest.fixture
def read(tmp_path):
    """`read(record, ...)`: the trajectories of a file with these records, one per line."""

    def read(*records, name="runs.jsonl", **options):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return list(read_trajectories(path, **options))

    return read


def content(trajectory):
    messages = trajectory.conversation.messages
    return [(m.role.name, m.text, [(c.name, dict(c.arguments)) for c in m.calls]) for m in messages]


CONTENT = [
    ("SYSTEM", "Book flights.", []),
    ("USER", "To SFO, for two.", []),
    ("ASSISTANT", "I look.", [("find", samples.FIND)]),
    ("TOOL", samples.RESULTS[0], []),
    ("ASSISTANT", "", [("book", samples.BAD)]),
    ("TOOL", samples.RESULTS[1], []),
    ("ASSISTANT", "", [("book", samples.GOOD)]),
    ("TOOL", samples.RESULTS[2], []),
    ("ASSISTANT", "B2 is booked.", []),
]


def test_samples_cover_every_format():
    assert set(samples.ALL) == set(FORMATS)


@pytest.mark.parametrize("name", [name for name in samples.ALL if name not in ("swe_agent", "alpaca")])
def test_every_format_gives_the_same_trajectory(read, name):
    """Except for text before calls (missing in ShareGPT and our ADP sample) and the marking of the error."""
    (found,) = read(samples.ALL[name]())
    expected = [list(line) for line in CONTENT]
    if name in ("sharegpt", "adp"):
        expected[2][1] = ""
    if name == "atif":
        expected[5][1] = "no seat"
    assert [list(line) for line in content(found)] == expected
    assert [step.error for step in found.steps] == [i == 5 for i in range(9)]
    actions = find_actions(found)
    assert [(a.call.name, a.failed, a.recovered_by, a.recovers) for a in actions] == [
        ("find", False, None, False), ("book", True, 2, False), ("book", False, None, True)]  # fmt: skip
    assert found.provenance.format == ("openai" if name == "ours" else name)
    tools = [] if name in ("tau_bench", "adp") else ["find", "book"]
    assert [tool.name for tool in found.tools] == tools


def test_swe_agent_commands_become_calls(read):
    (found,) = read(samples.swe_agent(), name="run.traj")
    calls = [(s.message.text, dict(c.arguments)["command"]) for s in found.steps for c in s.message.calls]
    assert calls == [("Look.", "ls"), ("Run it.", "python b.py"), ("Again.", "python a.py")]
    assert [(a.failed, a.recovered_by) for a in find_actions(found)] == [(False, None), (True, 2), (False, None)]
    assert found.steps[1].weight == 0.0 and {s.weight for s in found.steps[2:]} == {None}
    assert found.steps[3].extra["content"].startswith("DISCUSSION\n")
    assert found.outcome.termination == "submitted"
    assert found.extra["info"] == {"submission": "diff", "model_stats": {"api_calls": 3}}
    assert found.extra["trajectory[1]"] == {"execution_time": 0.5, "state": {"open_file": "n/a"}}
    assert found.steps[-1].message.text == "Done."


def test_swe_agent_duplicates_are_dropped_and_counted(tmp_path):
    (tmp_path / "run.traj").write_text(json.dumps(samples.swe_agent()))
    tally = Tally()
    assert len(list(read_trajectories(tmp_path, tally=tally))) == 1
    assert tally.as_dict()["left_out_fields"] == {
        "history[].thought": 1,
        **{f"trajectory[].{n}": 3 for n in ("action", "observation", "query", "response", "thought")},
    }


def test_swe_agent_calls_in_openai_form(read):
    record = samples.swe_agent()
    call = samples.openai_call("bash", {"command": "ls"}, "c1")
    record["history"][3:] = [
        {"role": "assistant", "content": "I look.", "thought": "I look.", "action": "ls", "tool_calls": [call],
         "agent": "main", "message_type": "action"},
        {"role": "tool", "content": [{"type": "text", "text": "Traceback (most recent call last):"}],
         "tool_call_ids": ["c1"], "agent": "main", "message_type": "observation"},
    ]  # fmt: skip
    (found,) = read(record)
    assert content(found)[3:] == [
        ("ASSISTANT", "I look.", [("bash", {"command": "ls"})]),
        ("TOOL", "Traceback (most recent call last):", []),
    ]
    assert found.steps[4].error and found.steps[4].message.call_id == "c1"


@pytest.mark.parametrize("name", list(samples.ALL))
def test_unknown_fields_are_kept_or_refused(read, name):
    """An unknown field in the record and in a message goes to `extra`, and is an error with `unknown="refuse"`."""
    record = samples.ALL[name]()
    key = {"tau_bench": "traj", "swe_agent": "history", "sharegpt": "conversations", "atif": "steps",
             "adp": "content", "prompt_completion": "prompt"}.get(name, "messages")  # fmt: skip
    record["novel"] = {"a": [1]}
    if name == "alpaca":  # has no messages
        assert read(record)[0].extra == {"novel": {"a": [1]}}
        with pytest.raises(InputError, match="record 0, line 1: novel: unknown field"):
            read(record, unknown="refuse")
        return
    record[key][1]["strange"] = "x"
    (found,) = read(record)
    assert found.extra["novel"] == {"a": [1]}
    assert [step.extra["strange"] for step in found.steps if "strange" in step.extra] == ["x"]
    with pytest.raises(InputError, match=rf"record 0, line 1: {key}\[1\].strange: unknown field; expected .*"):
        read(record, unknown="refuse")
    del record[key][1]["strange"]
    with pytest.raises(InputError, match="record 0, line 1: novel: unknown field"):
        read(record, unknown="refuse")


@pytest.mark.parametrize("name", list(samples.ALL))
def test_documented_fields_are_known(read, name):
    tally = Tally()
    assert len(read(samples.ALL[name](), unknown="refuse", tally=tally)) == 1
    assert tally.as_dict()["unknown_fields"] == {}


def test_unknown_fields_inside_calls_and_parts_are_kept_by_path(read):
    record = samples.openai()
    record["messages"][2]["tool_calls"][0] |= {"index": 0}
    record["messages"][2]["tool_calls"][0]["function"] |= {"strict": True}
    record["messages"][1]["content"] = [{"type": "text", "text": "To SFO, for two.", "cache": 1}]
    tally = Tally()
    (found,) = read(record, tally=tally)
    assert found.steps[2].extra == {"tool_calls[0].index": 0, "tool_calls[0].function.strict": True}
    assert found.steps[1].extra == {"content[0].cache": 1}
    assert tally.as_dict()["unknown_fields"] == {
        "messages[].content[].cache": 1,
        "messages[].tool_calls[].function.strict": 1,
        "messages[].tool_calls[].index": 1,
    }


@pytest.mark.parametrize(
    ("field", "weight"), [({"weight": 0}, 0.0), ({"loss_weight": 1.5}, 1.5), ({"loss": False}, 0.0), ({}, None)]
)
def test_weights_of_single_messages(read, field, weight):
    record = samples.openai()
    record["messages"][8] |= field
    assert read(record)[0].steps[8].weight == weight


@pytest.mark.parametrize(
    ("flags", "text", "error"),
    [
        ({"is_error": False}, "Error: looks like one", False),
        ({"is_error": True}, "fine", True),
        ({"status": "error"}, "fine", True),
        ({"status": "success"}, "Error: looks like one", False),
        ({"exit_code": 2}, "fine", True),
        ({"exit_code": 0}, "Traceback (most recent call last)", False),
        ({}, "error: no such thing", True),
        ({}, '{"error": "no such thing"}', True),
        ({}, '{"error": null, "value": 1}', False),
        ({}, "No error: all is well", False),
        ({}, '{"broken', False),
    ],
)
def test_flags_take_precedence_over_text(read, flags, text, error):
    record = samples.openai()
    record["messages"][7] |= {"content": text, **flags}
    assert read(record, unknown="refuse")[0].steps[7].error is error


def test_atif_copied_context_has_no_weight(read):
    record = samples.atif()
    record["steps"][2]["is_copied_context"] = True
    assert [step.weight for step in read(record)[0].steps] == [None, None, 0.0, 0.0, *[None] * 5]


def test_parallel_calls_may_be_answered_in_any_order(read):
    record = samples.openai()
    calls = [samples.openai_call("find", {"to": c}, c) for c in "abc"]
    answers = [{"role": "tool", "tool_call_id": c, "content": c} for c in "cab"]
    record["messages"][2:] = [{"role": "assistant", "tool_calls": calls}, *answers]
    (found,) = read(record)
    assert [step.message.text for step in found.steps[3:]] == ["a", "b", "c"]


def test_parallel_calls_of_adp_and_sharegpt_are_one_message(read):
    adp = samples.adp()
    adp["content"][2:6] = [adp["content"][i] for i in (2, 4, 5, 3)]
    sharegpt = samples.sharegpt()
    sharegpt["conversations"][1:5] = [sharegpt["conversations"][i] for i in (1, 3, 2, 4)]
    for record in (adp, sharegpt):
        (found,) = read(record)
        assert [len(step.message.calls) for step in found.steps] == [0, 0, 2, 0, 0, 1, 0, 0]
        assert [step.error for step in found.steps[3:5]] == [False, True]


def test_older_adp_files_and_code_actions(read):
    """An observation without a call id is a result if a call has none yet, even if its source is the user."""
    record = {
        "id": "old",
        "content": [
            {"class_": "text_observation", "content": "How many?", "source": "user"},
            {"class_": "code_action", "language": "bash", "content": "ls -1 | wc -l", "description": "I count."},
            {"class_": "text_observation", "content": "3", "source": "user", "name": None},
            {"class_": "code_action", "language": "python", "content": "print(3)", "description": None},
            {"class_": "web_observation", "html": "<p>3</p>", "axtree": "3", "url": "u", "viewport_size": [1, 2]},
            {"class_": "message_action", "content": "3", "description": None},
        ],
    }
    (found,) = read(record, unknown="refuse")
    assert content(found) == [
        ("USER", "How many?", []),
        ("ASSISTANT", "I count.", [("bash", {"command": "ls -1 | wc -l"})]),
        ("TOOL", "3", []),
        ("ASSISTANT", "", [("python", {"code": "print(3)"})]),
        ("TOOL", "3", []),
        ("ASSISTANT", "3", []),
    ]
    assert found.steps[4].extra == {"url": "u", "viewport_size": [1, 2], "html": "<p>3</p>"}


def test_atif_observations_without_calls_and_later_system_steps_are_user_messages(read):
    record = samples.atif()
    record["steps"][2] = {
        "step_id": 3,
        "source": "system",
        "message": "Context was cut.",
        "observation": {
            "results": [{"content": [{"type": "text", "text": "state: "}, {"type": "text", "text": "ok"}]}]
        },
    }
    (found,) = read(record, unknown="refuse")
    assert content(found)[2:4] == [("USER", "Context was cut.", []), ("USER", "state: ok", [])]
    assert [step.extra for step in found.steps[2:4]] == [{"source": "system"}, {"source": "environment"}]


def test_a_trajectory_may_end_in_a_call(read):
    record = samples.openai()
    del record["messages"][7:]
    actions = find_actions(read(record)[0])
    assert [(a.result, a.failed) for a in actions] == [(3, False), (5, True), (None, False)]
    assert not any(a.recovers for a in actions)


def test_a_file_may_be_a_single_document(tmp_path):
    for name, document in (("list.json", [samples.tau_bench()] * 2), ("one.json", samples.tau_bench())):
        (tmp_path / name).write_text(json.dumps(document, indent=1))
    locations = [(t.provenance.file, t.provenance.record, t.provenance.line) for t in read_trajectories(tmp_path)]
    assert locations == [("list.json", 0, None), ("list.json", 1, None), ("one.json", 0, None)]


def test_a_folder_may_mix_formats_and_suffixes(tmp_path):
    for name, make in samples.ALL.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(make()))
    (tmp_path / ".hidden.jsonl").write_text("not JSON")
    assert [t.provenance.id for t in read_trajectories(tmp_path)] == [
        "x-1", None, "s-1", "r1", "r", "p-1", None, None, "7/2"]  # fmt: skip
    (tmp_path / "lines").write_text(f"{json.dumps(samples.openai())}\n" * 2)
    (tmp_path / "document").write_text(json.dumps(samples.openai(), indent=2))
    assert [len(list(read_trajectories(tmp_path / name))) for name in ("lines", "document")] == [2, 1]


def test_our_format_has_all_fields(read):
    (found,) = read(samples.ours())
    assert found.provenance == Provenance("openai", "a/b.jsonl", 0, 1, "r", "t")
    assert found.outcome == Outcome(-1.0, True, "user left")
    step = found.steps[8]
    assert (step.weight, step.reward, step.extra) == (2.0, 0.5, {"seen": [1, None, {"a": "é"}]})
    assert json.loads(ours.write(found))["messages"][2]["tool_calls"][0]["function"]["arguments"] == samples.FIND


@pytest.mark.parametrize("name", list(samples.ALL))
def test_every_format_round_trips_through_ours(read, name):
    record = samples.ALL[name]()
    record["novel"] = [1, {"a": None}]
    (found,) = read(record)
    (again,) = read(json.loads(ours.write(found)), unknown="refuse")
    assert again == found
    assert ours.write(again) == ours.write(found)


# ---- round trips --------------------------------------------------------------------------------------------------


def is_text(parts: list[str]) -> bool:
    """Whether a user's message has no place of a picture, which is refused."""
    try:
        refuse_placeholder("".join(parts))
    except InputError:
        return False
    return True


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
words = texts.filter(lambda text: text.strip())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
questions = st.lists(words, min_size=1, max_size=2).filter(is_text)
extras = st.dictionaries(words.map("x-".__add__), json_values, max_size=2)
numbers = st.none() | st.floats(0, 1e6)


@st.composite
def trajectories(draw):
    steps = [Step(Message(Role.USER, draw(questions)), extra=draw(extras))]
    for turn in range(draw(st.integers(1, 3))):
        count = draw(st.integers(0, 2))
        calls = [
            ToolCall(draw(words), draw(st.dictionaries(texts, json_values, max_size=2)), f"{turn}-{i}")
            for i in range(count)
        ]
        said = draw(st.lists(words, min_size=not calls, max_size=2))
        message = Message(Role.ASSISTANT, said, calls, draw(texts))
        steps.append(Step(message, weight=draw(numbers), reward=draw(numbers), extra=draw(extras)))
        for call in calls:
            answer = Message(Role.TOOL, draw(texts), call_id=draw(st.sampled_from([None, call.id])))
            steps.append(Step(answer, draw(st.booleans()), draw(numbers), extra=draw(extras)))
    names = draw(st.lists(words, max_size=2, unique=True))
    tools = [Tool(name, draw(texts), {"type": "object", "x": draw(json_values)}) for name in names]
    outcome = Outcome(draw(numbers), draw(st.none() | st.booleans()), draw(st.none() | words))
    provenance = Provenance(draw(words), draw(texts), draw(st.integers(0, 9)), None, draw(st.none() | words))
    return Trajectory(steps, tools, outcome, provenance, draw(extras))


@settings(max_examples=150)
@given(trajectories())
def test_a_written_trajectory_is_read_back(trajectory):
    from data.trajectories.fields import FieldCounts, Fields
    from data.trajectories.files import parse

    line = ours.write(trajectory)
    assert "\n" not in line
    again = ours.read(Fields(parse(line.encode()), "", FieldCounts("refuse")))
    assert again == trajectory
    assert ours.write(again) == line
    ids = [[call.id for step in t.steps for call in step.message.calls] for t in (trajectory, again)]
    assert ids[0] == ids[1]
