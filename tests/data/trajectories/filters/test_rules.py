"""Filter rules: each on a trajectory that breaks it and one that does not, with all drops counted."""

import dataclasses
import itertools
import json
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.commands import inspect, stats
from data.commands import show as show_stats
from data.config import DataConfig
from data.trajectories import Outcome, Provenance, Step, Trajectory, read_tools, read_trajectories
from data.trajectories.filters import CurationConfig, FilterConfig, Report, ScrubConfig, apply, duplicates, score, show
from data.trajectories.filters.commands import read_config
from data.trajectories.filters.rules import RULES, find_loop, reasons
from data.trajectories.filters.score import WEIGHTS, parts
from data.trajectories.formats import ours
from launch.cli import main
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Message, Role, Tool, ToolCall, render
from tests.helpers import trajectory_samples as samples

FIND, BOOK = ToolCall("find", {"to": "SFO", "day": 1}), ToolCall("book", {"flight": "B2"})
TOOLS = (
    Tool("find", "", {"properties": {"to": {"type": "string"}, "day": {"type": "integer"}}, "required": ["to"]}),
    Tool("book", "", {"properties": {"flight": {"enum": ["A1", "B2"]}, "seats": {"type": ["array", "null"],
                                                                            "items": {"type": "number"}}}}),
)  # fmt: skip
OFF = FilterConfig(exact_duplicates=False, loops=None, malformed_calls=False, empty_final=False,
                   unrecovered_failures=None)  # fmt: skip


def trajectory_of(*acts, said="To SFO.", final="Done.", tools=(), **fields):
    """A trajectory of (call, result, error), or (call, None) if it ends before the result."""
    steps = [Step(Message(Role.SYSTEM, "Be kind.")), Step(Message(Role.USER, said))]
    for call, result, *error in acts:
        steps.append(Step(Message(Role.ASSISTANT, "", [call])))
        if result is not None:
            steps.append(Step(Message(Role.TOOL, result), error=bool(error and error[0])))
    if final is not None:
        steps.append(Step(Message(Role.ASSISTANT, final)))
    return Trajectory(steps, tools, **fields)


def kept(runs, config=OFF, **options):
    found, report = apply(runs, CurationConfig(filter=config), **options)
    found = list(found)
    assert report.read == report.kept + report.dropped and sum(report.dropped_by.values()) == report.dropped
    assert report.kept == len(found) and report.dropped == len(report.runs)
    return found, report


# ---- rules of one trajectory -----------------------------------------------------------------------------------------

STRICT = FilterConfig(unrecovered_failures=0)
GOOD = trajectory_of((FIND, "A1"), (BOOK, "ok"))
FAILED = trajectory_of((BOOK, "Error", True))
BREAKS = {
    "loops": (FilterConfig(loops=3), trajectory_of(*[(FIND, "A1")] * 3),
              "messages[2]: 'find' is repeated at least 3 times"),
    "malformed_calls": (FilterConfig(), trajectory_of((ToolCall("find", {"day": 1}), "A1"), tools=TOOLS),
                        "messages[2]: 'find': to: missing"),
    "empty_final": (FilterConfig(), trajectory_of((FIND, None), final=None), "ends in a call without a result"),
    "reward": (FilterConfig(min_reward=0.5), trajectory_of(outcome=Outcome(0.25)), "reward 0.25 is less than 0.5"),
    "turns": (FilterConfig(max_turns=2), GOOD, "3 turns, more than 2"),
    "length": (FilterConfig(max_characters=20), GOOD, "characters, more than 20"),
    "unrecovered_failures": (STRICT, FAILED, "1 failed calls without a recovery, more than 0"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_drops_only_what_breaks_it(rule):
    config, bad, reason = BREAKS[rule]
    fine = dataclasses.replace(GOOD, outcome=Outcome(1.0)) if rule in ("reward",) else trajectory_of((FIND, "A1"))
    fine = trajectory_of(final="ok") if rule == "length" else fine
    found, report = kept([bad, fine], config)
    assert found == [fine] and report.dropped_by == {rule: 1} and reason in report.runs[0]["reason"]
    assert kept([bad], OFF)[0] == [bad]


@given(st.text("abc", max_size=14), st.integers(2, 4))
def test_loops_equal_the_slow_search(done, times):
    """The slow search compares lists for every beginning and period."""
    found = find_loop(done, times)
    slow = [(p, i) for p in range(1, 5) for i in range(len(done)) if done[i : i + p] * times == done[i : i + p * times]]
    slow = [(p, i) for p, i in slow if i + p * times <= len(done)]
    assert found == ((min(slow)[1], min(slow)[0]) if slow else None)


def test_repeated_sequences_are_loops():
    acts = [(ToolCall("think"), ""), (BOOK, "Error", True)] * 3
    assert reasons(trajectory_of(*acts), OFF.model_copy(update={"loops": 3})) == {
        "loops": "messages[2]: a sequence of 2 calls from 'think' on is repeated at least 3 times with the same result"
    }


def test_a_loop_needs_equal_calls_and_results_in_a_row():
    other = ToolCall("find", {"day": 1, "to": "SFO"}, "another id")
    assert "loops" in reasons(trajectory_of((FIND, "A1"), (other, "A1"), (FIND, "A1")), FilterConfig())
    for acts in (
        [(FIND, "A1"), (FIND, "A2"), (FIND, "A1"), (FIND, "A2")],
        [(FIND, "A1"), (FIND, "A1"), (BOOK, "ok"), (FIND, "A1")],
        [(FIND, "A1"), (ToolCall("find", {"to": "SFO", "day": True}), "A1"), (FIND, "A1")],
        [(FIND, "A1"), (FIND, "A1")],
    ):
        assert reasons(trajectory_of(*acts), FilterConfig()) == {}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"to": 1}, "to: expected string"),
        ({"to": "SFO", "day": 1.5}, "day: expected integer"),
        ({"to": "SFO", "day": True}, "day: expected integer"),
        ({"to": "SFO", "month": 2}, "month: not declared"),
        ({"to": "SFO", "day": 1.0}, None),
        ({"to": "SFO"}, None),
    ],
)
def test_calls_are_checked_against_the_declaration(arguments, reason):
    found = reasons(trajectory_of((ToolCall("find", arguments), "A1"), tools=TOOLS), FilterConfig())
    assert found == ({} if reason is None else {"malformed_calls": f"messages[2]: 'find': {reason}"})


def test_lists_choices_and_undeclared_tools():
    def reason(call, *error):
        return reasons(
            trajectory_of((call, "x", *error), tools=TOOLS), OFF.model_copy(update={"malformed_calls": True})
        )

    assert reason(ToolCall("book", {"flight": "B2", "seats": [1, 2.5]})) == {}
    assert reason(ToolCall("book", {"seats": None})) == {}
    assert "seats[1]: expected number" in reason(ToolCall("book", {"seats": [1, "2"]}))["malformed_calls"]
    assert "flight: not one of the 2 allowed values" in reason(ToolCall("book", {"flight": "C3"}))["malformed_calls"]
    assert "'sing' is not declared" in reason(ToolCall("sing"))["malformed_calls"]
    assert reason(ToolCall("sing"), True) == {}  # a failed call is not malformed
    odd = (Tool("find", "", {"properties": [1], "required": "to", "type": {"a": 1}, "enum": 3}),)
    assert reasons(trajectory_of((FIND, "x"), tools=odd), FilterConfig()) == {}


def test_endings():
    thinks = trajectory_of((FIND, "A1"), final=None)
    thinks = dataclasses.replace(thinks, steps=[*thinks.steps, Step(Message(Role.ASSISTANT, " \n", thought="hm"))])
    assert "has no text and no call" in reasons(thinks, FilterConfig())["empty_final"]
    assert reasons(trajectory_of((FIND, "submitted"), final=None), FilterConfig()) == {}


def test_a_failure_is_tolerated_with_a_recovery_or_success():
    assert reasons(trajectory_of((BOOK, "Error", True), (BOOK, "ok")), STRICT) == {}
    for outcome in (Outcome(1.0), Outcome(0.0, True)):
        assert reasons(dataclasses.replace(FAILED, outcome=outcome), STRICT) == {}
    for outcome in (Outcome(), Outcome(0.5), Outcome(1.0, False)):
        assert list(reasons(dataclasses.replace(FAILED, outcome=outcome), STRICT)) == ["unrecovered_failures"]
    assert reasons(FAILED, FilterConfig()) == {}


def test_rewards():
    config = FilterConfig(min_reward=1.0)
    outcomes = [Outcome(1.0), Outcome(None, True), Outcome(None, False), Outcome(), Outcome(0.5, True)]
    found = [reasons(trajectory_of(outcome=outcome), config).get("reward") for outcome in outcomes]
    assert found == [None, None, "reward 0 is less than 1", "no reward", "reward 0.5 is less than 1"]


def test_tokens():
    tokenizer = load_tokenizer("bytes")
    length = lambda run: len(render(run.conversation, tokenizer).ids)
    count = length(GOOD)
    assert kept([GOOD], FilterConfig(max_tokens=count), count_tokens=length)[0] == [GOOD]
    assert kept([GOOD], FilterConfig(max_tokens=count - 1), count_tokens=length)[1].dropped_by == {"length": 1}

    def refuse(run):
        raise InputError("no dialect writes it")

    found, report = kept([GOOD], FilterConfig(max_tokens=9), count_tokens=refuse)
    assert found == [] and report.runs[0]["reason"] == "cannot be rendered: no dialect writes it"
    with pytest.raises(InputError, match="max_tokens needs a tokenizer"):
        apply([], CurationConfig(filter=FilterConfig(max_tokens=9)))


# ---- duplicates ----------------------------------------------------------------------------------------------------


def test_exact_duplicates_have_the_same_content():
    first = trajectory_of((FIND, "A1"), provenance=Provenance(id="one"))
    call = ToolCall("find", {"day": 1, "to": "SFO"}, "c9")
    same = trajectory_of((call, "A1"), provenance=Provenance(id="two"), outcome=Outcome(1.0), extra={"x": 1})
    others = [
        trajectory_of((FIND, "A2")), trajectory_of((FIND, "A1", True), final="x"),
        trajectory_of((FIND, "A1"), said="To SFO!"),
        trajectory_of((FIND, "A1"), tools=TOOLS), trajectory_of((ToolCall("find", {"to": "SFO", "day": True}), "A1")),
    ]  # fmt: skip
    found, report = kept([first, first, *others, same], OFF.model_copy(update={"exact_duplicates": True}))
    assert found == [first, *others]
    assert [(r["run"], r["reason"]) for r in report.runs] == [
        ("one", "same content as one"),
        ("two", "same content as one"),
    ]
    assert len({duplicates.content_hash(run) for run in [first, same, *others]}) == 6


def _texts(seed, changed):
    """Two texts of 200 words that differ in the `changed` ones."""
    pick = random.Random(seed)
    words = [f"w{pick.randrange(5000)}" for _ in range(200)]
    return [" ".join(f"c{i}" if i in changed else w for i, w in enumerate(words)), " ".join(words)]


def _jaccard(a, b, words=5):
    a, b = (duplicates.shingles(run, words) for run in (a, b))
    return len(a & b) / len(a | b)


def test_trajectories_that_differ_only_in_an_error_are_no_duplicates():
    runs = [trajectory_of((FIND, "none", error)) for error in (False, True)]
    assert len({duplicates.content_hash(run) for run in runs}) == 2
    assert len(kept(runs, OFF.model_copy(update={"exact_duplicates": True}))[0]) == 2


def test_near_duplicates_equal_those_by_exact_similarity():
    """Compared with the exact similarity of all pairs; no pair is within the estimate's error of the threshold."""
    pytest.importorskip("datasketch")
    runs = [
        trajectory_of(said=text)
        for seed in range(20)
        for text in _texts(seed, {seed * 9} if seed % 2 else set(range(40)))
    ]
    exact: list[Trajectory] = []
    for run in runs:
        similar = [_jaccard(run, other) for other in exact]
        assert all(abs(value - 0.8) > 0.1 for value in similar)
        if not any(value >= 0.8 for value in similar):
            exact.append(run)
    found, report = kept(runs, OFF.model_copy(update={"near_duplicates": 0.8}))
    assert found == exact and 0 < report.dropped_by["near_duplicates"] < len(runs)
    assert "similarity 0.9" in report.runs[0]["reason"]


def test_shingles_are_words_without_the_system_message():
    run = trajectory_of((FIND, "A1"), said="one two three")
    assert {"one two three", "two three \nassistant"} <= duplicates.shingles(run, 3)
    assert not any("kind" in shingle for shingle in duplicates.shingles(run, 3))
    assert len(duplicates.shingles(run, 100)) == 1


def test_near_duplicates_need_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(InputError, match=r"near_duplicates needs the package datasketch: pip install"):
        apply([], CurationConfig(filter=FilterConfig(near_duplicates=0.8)))


# ---- score ---------------------------------------------------------------------------------------------------------


def test_score_by_hand():
    call = ToolCall("find", {"to": "SFO", "list": [{"day": 7}], "sure": True})
    run = trajectory_of((call, "B2", True), (BOOK, "ok"), (call, "A1"), outcome=Outcome(0.5))
    found = parts(run)
    # of SFO, 7, B2, SFO, 7 the user mentioned SFO and a result B2; true does not count
    assert dataclasses.asdict(found) == pytest.approx(
        {"outcome": 0.5, "recovery": 1.0, "grounding": 3 / 5, "variety": 0.5, "depth": 3 / 7, "novelty": 2 / 3}
    )
    assert score(run) == pytest.approx(0.2 + 0.2 + 0.09 + 0.05 + 0.3 / 7 + 0.1 / 3, abs=1e-6)
    assert sum(WEIGHTS.values()) == pytest.approx(1)


def test_score_bounds_and_order():
    worst, best = (
        trajectory_of((BOOK, "E", True), outcome=Outcome(-9.0)),
        trajectory_of((FIND, "A1"), outcome=Outcome(9.0)),
    )
    assert 0 <= score(worst) < score(trajectory_of()) < score(best) <= 1
    assert score(trajectory_of((BOOK, "E", True), (BOOK, "ok"))) > score(trajectory_of((BOOK, "ok"), (BOOK, "ok")))


def test_keep_best_keeps_the_order_and_breaks_ties_by_hash():
    runs = [
        trajectory_of(said=f"number {i}", outcome=Outcome(i % 3 / 2), provenance=Provenance(id=f"r{i}"))
        for i in range(9)
    ]
    found, report = kept(runs, OFF.model_copy(update={"keep_best": 0.5}))
    ranked = sorted(runs, key=lambda run: (-score(run), duplicates.content_hash(run)))
    assert found == [run for run in runs if run in ranked[:5]]
    assert report.dropped_by == {"keep_best": 4} and len(report.scores) == 9
    again, _ = kept(runs[::-1], OFF.model_copy(update={"keep_best": 0.5}))
    assert again == found[::-1]


# ---- applying the rules ---------------------------------------------------------------------------------------------


def test_a_trajectory_is_dropped_once_and_matches_every_rule_that_applies():
    bad = trajectory_of(*[(BOOK, "Error", True)] * 3, (FIND, None), final=None)
    _, report = kept([bad, bad, GOOD], FilterConfig())
    assert report.dropped_by == {"empty_final": 2}
    assert +report.matched == {"empty_final": 2, "loops": 2, "unrecovered_failures": 2}


def test_trajectories_are_read_one_by_one_and_no_filter_keeps_all():
    taken = []
    endless = (taken.append(i) or GOOD for i in itertools.count())
    found, report = apply(endless, CurationConfig(filter=None))
    assert [next(found), next(found)] == [GOOD, GOOD] and len(taken) == 2 and report.kept == 2


def test_a_trajectory_that_cannot_be_scrubbed_is_dropped_and_counted(monkeypatch):
    config = CurationConfig(scrub=ScrubConfig(salt="12345678"))
    monkeypatch.setattr("data.trajectories.filters.scrub.MAX_ROUNDS", 0)
    found, report = apply([GOOD], config)
    assert list(found) == [] and report.dropped_by == {"scrub": 1} and report.read == report.dropped


def test_dropped_trajectories_beyond_max_named_are_counted(monkeypatch):
    monkeypatch.setattr("data.trajectories.filters.report.MAX_NAMED", 1)
    found, report = apply([FAILED] * 3, CurationConfig(filter=STRICT))
    assert list(found) == [] and len(report.runs) == 1
    assert report.as_dict()["not_named"] == 2 and report.dropped == 3


def test_an_empty_report_can_be_shown(capsys):
    show(Report().as_dict())
    assert "0 trajectories: 0 kept, 0 dropped" in capsys.readouterr().out


# ---- maverick data filter ------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "runs.jsonl"
    lost = samples.openai() | {"id": "lost", "messages": samples.openai_messages()[:-3], "reward": 0}
    lines = [samples.openai(), samples.openai() | {"id": "twin"}, lost]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not JSON\n")
    return path


def test_command(source, tmp_path, capsys):
    out, told = tmp_path / "out.jsonl", tmp_path / "report.json"
    words = [str(source), str(out), "--malformed", "skip", "--report", str(told), "--json"]
    words.append("filter.unrecovered_failures=0")
    assert main(["data", "filter", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(told.read_text())
    assert (found["read"], found["kept"], found["dropped"], found["malformed"]) == (3, 1, 2, 1)
    assert [(r["run"], r["line"], r["rule"]) for r in found["runs"]] == [
        ("twin", 2, "exact_duplicates"), ("lost", 3, "unrecovered_failures")]  # fmt: skip
    assert list(read_trajectories(out)) == [next(read_trajectories(source))]


def test_command_with_a_config_prints_tables(source, tmp_path, capsys):
    config = tmp_path / "choose.yaml"
    config.write_text("filter:\n  exact_duplicates: false\nscrub:\n  salt: from the file\n")
    out = tmp_path / "out.jsonl"
    words = [
        str(source),
        str(out),
        "--config",
        str(config),
        "filter.empty_final=false",
        "filter.unrecovered_failures=0",
    ]
    assert main(["data", "filter", *words, "--malformed", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "3 trajectories: 2 kept, 1 dropped" in printed and "lost: unrecovered_failures: 1 failed" in printed
    assert "malformed records skipped: 1" in printed


def test_a_failed_command_writes_nothing(source, tmp_path, capsys):
    told, out = str(tmp_path / "report.json"), str(tmp_path / "out.jsonl")
    assert main(["data", "filter", str(source), out, "--report", told]) == 78  # a malformed record
    assert "record 3, line 4: not JSON" in capsys.readouterr().err
    assert main(["data", "filter", str(source), out, "filter.min_reward=2", "--malformed", "skip"]) == 78
    assert "none of the 3 trajectories is kept (reward 3); relax the filter" in capsys.readouterr().err
    assert main(["data", "filter", str(source), out, "--report", out, "--malformed", "skip"]) == 78
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["filter.loop=3"], "filter.loop: unknown key; did you mean filter.loops?"),
        (["filter.loops=1"], "filter.loops"),
        (["filter.keep_best=0"], "filter.keep_best"),
        (["filter.min_turns=5", "filter.max_turns=4"], "max_turns (4) is less than min_turns (5)"),
        (["scrub.rules=[mail]", "scrub.salt=12345678"], "did you mean email?"),
        (["scrub.rules=[email]"], "scrub.salt: required"),
        (["loops"], "expected key=value, such as filter.loops=4"),
    ],
)
def test_config_refuses(words, message):
    with pytest.raises(InputError) as refused:
        read_config(None, words)
    assert message in str(refused.value)


def test_overrides_apply_on_top_of_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("filter: {loops: 5, max_turns: 9}\n")
    found = read_config(str(path), ["filter.loops=null", "scrub={salt: 12345678x}"])
    assert found.filter == FilterConfig(loops=None, max_turns=9) and found.scrub == ScrubConfig(salt="12345678x")
    assert read_config(str(path), ["filter=null"]).filter is None
    assert read_config(None).filter == FilterConfig()


def _source(source, tmp_path, **options):
    trajectories = {"malformed": "skip", **options}
    return DataConfig.model_validate({
        "sources": {"runs": {"path": str(source), "format": "trajectories", "trajectories": trajectories}},
        "sequence_length": 2048, "batch_size": 1, "held_out_fraction": 0.0, "cache_dir": str(tmp_path / "cache"),
    })  # fmt: skip


def test_a_source_of_rows_is_filtered_and_scrubbed(source, tmp_path, capsys):
    """By its config; another config gives another cache, and `data stats` shows the counts."""
    source.write_text(source.read_text().replace("B2 is booked.", "B2 is booked, joe@corp.com."))
    plain = stats(_source(source, tmp_path), 0)["splits"]["train"]["sources"]["runs"]
    assert plain["documents"] == 3 and "chosen" not in plain["read"]
    chosen = {"filter": FilterConfig(unrecovered_failures=0), "scrub": ScrubConfig(salt="12345678")}
    config = _source(source, tmp_path, **chosen)
    found = stats(config, 0)
    show_stats(found)
    assert "kept: 1 of 3 trajectories; dropped: unrecovered_failures 1, exact_duplicates 1" in capsys.readouterr().out
    read = found["splits"]["train"]["sources"]["runs"]["read"]
    assert read["chosen"]["kept"] == 1 and [run["run"] for run in read["chosen"]["runs"]] == ["twin", "lost"]
    text = "".join(run["text"] for row in inspect(config, 0, count=1)["rows"] for run in row["runs"])
    assert "joe@corp.com" not in text and ".invalid." in text
    refused = _source(source, tmp_path, filter=FilterConfig(max_tokens=1))
    with pytest.raises(InputError, match=r"no trajectory can be read: the filter drops 3 of 3 \(length 3\)"):
        stats(refused, 0)


def test_real_trajectories(real_data):
    """The counts for the 152 trajectories that the docs report."""
    tools = read_tools(real_data / "tau_airline_tools.json")
    found, report = kept(read_trajectories(real_data / "tau_airline_gpt4o.jsonl", tools=tools), FilterConfig())
    assert report.read == 152 and report.dropped_by == {"unrecovered_failures": 2, "loops": 1}
    assert [run["run"] for run in report.runs] == ["8/1", "9/2", "23/3"]
    assert all(ours.write(run) for run in found[:3])
