"""Personal data is found by rules and checksums and replaced consistently; nothing else changes."""

import dataclasses
import ipaddress
import json
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.trajectories import Outcome, Provenance, Step, Trajectory
from data.trajectories.filters import Report, Scrubber, ScrubConfig
from data.trajectories.filters.draw import Seeds
from data.trajectories.filters.json_text import change_json, is_json
from data.trajectories.filters.pii import RULES, Iban, luhn, mod97
from data.trajectories.formats import ours
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, Tool, ToolCall

SALT = "a salt of ours"
CARD, IBAN, SSN = "4111 1111 1111 1111", "GB82 WEST 1234 5698 7654 32", "123-45-6789"
MAIL, PHONE = "Joe.7@Mail.Corp.com", "(212) 867-5309"
SAMPLES = {"credit_card": CARD, "iban": IBAN, "us_ssn": SSN, "email": MAIL, "phone": PHONE, "ip": "93.184.216.34"}


def scrubber(report=None, **options):
    return Scrubber(ScrubConfig(salt=SALT, **options), report)


def trajectory_of(text, *, arguments=None, result="done", **fields):
    call = ToolCall("look", {"q": text} if arguments is None else arguments, "c1")
    steps = [
        Step(Message(Role.USER, text)),
        Step(Message(Role.ASSISTANT, "", [call], thought=f"think of {text}")),
        Step(Message(Role.TOOL, result, call_id="c1")),
        Step(Message(Role.ASSISTANT, f"It is {text}.")),
    ]
    return Trajectory(steps, **fields)


def scrub_text(text, **options):
    return scrubber(**options).scrub(trajectory_of(text)).steps[0].message.text


# ---- detection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *SAMPLES.items(),
        ("email", "a+b_c@x.co.uk"),
        ("email", "müller@büro.de"),
        ("iban", "DE89370400440532013000"),
        ("iban", "NO93 8601 1117 947"),
        ("iban", "de89-3704-0044-0532-0130-00"),
        ("credit_card", "378282246310005"),
        ("credit_card", "3782 822463 10005"),
        ("credit_card", "5555-5555-5555-4444"),
        ("credit_card", "6011111111111117"),
        ("phone", "212-867-5309"),
        ("phone", "+1 212 867 5309"),
        ("phone", "+12128675309"),
        ("phone", "1.212.867.5309"),
        ("phone", "+44 20 7946 0958"),
        ("phone", "+4930901820"),
        ("ip", "2606:2800:220:1:248:1893:25c8:1946"),
        ("ip", "2606:4700::1111"),
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "see {}, please", "({})", '"{}"', "x={};", "end: {}.", "lines\\n{}\\tnext", "{}:"]
)
def test_found(kind, text, around):
    report = Report()
    scrubbed = scrubber(report).scrub(trajectory_of(around.format(text))).steps[0].message.text
    assert dict(report.values) == {kind: 1} and text not in scrubbed
    before, after = around.split("{}")
    assert scrubbed.startswith(before) and scrubbed.endswith(after)


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112", "1234567812345670", "2024 2025 2026 2027", "41111111111111110000000",
        "0.4111111111111111",
        "GB83 WEST 1234 5698 7654 32", "QQ82 WEST 1234 5698 7654 32", "000-12-3456", "666-12-3456", "912-34-5678",
        "123-00-4567", "123-45-0000", "123-45-67890", "@home", "a@b", "12:34:56", "std::map a::b",
        "127.0.0.1", "10.1.2.3",
        "192.168.0.1", "256.1.1.1", "1.2.3", "1.2.3.4.5", "::1", "fe80::1", "2024-05-15", "HAT136", "450-320-512",
        "credit_card_4421486", "550e8400-e29b-41d4-a716-446655440000", "1700000000000000000",
    ],
)  # fmt: skip
def test_not_found(text):
    assert scrub_text(f"see {text} there") == f"see {text} there"


@pytest.mark.parametrize("kind", RULES)
def test_a_replacement_has_the_shape_and_an_unassigned_range(kind):
    """Letters replace letters and digits replace digits; another salt gives another replacement."""
    old = SAMPLES[kind]
    new, other = (
        scrub_text(old),
        Scrubber(ScrubConfig(salt="another salt")).scrub(trajectory_of(old)).steps[0].message.text,
    )
    assert new != old and other not in (old, new)
    if kind == "email":
        assert new.endswith(".invalid") and _shape(new)[:10] == _shape(old)[:10]
    elif kind == "ip":
        assert not ipaddress.ip_address(new).is_global
    else:
        assert _shape(new) == _shape(old)
    if kind == "credit_card":
        assert _luhn_by_hand(new.replace(" ", "")) and new.startswith("9999")
    if kind == "iban":
        assert _mod97_by_hand(new.replace(" ", "")) == 1 and new.startswith("XX")


def _shape(text):
    return "".join("a" if c.islower() else "A" if c.isupper() else "0" if c.isdigit() else c for c in text)


def _luhn_by_hand(digits):
    total = 0
    for i, d in enumerate(reversed(digits)):
        d = int(d) * (1 + i % 2)
        total += d - 9 if d > 9 else d
    return total % 10 == 0


def _mod97_by_hand(iban):
    remainder = 0
    for c in iban[4:] + iban[:4]:
        for digit in str("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(c.upper())):
            remainder = (10 * remainder + int(digit)) % 97
    return remainder


@given(st.text("0123456789", min_size=2, max_size=24))
def test_checksums_equal_the_slow_ones(digits):
    assert luhn(digits) == _luhn_by_hand(digits)
    assert mod97(f"GB00{digits}") == _mod97_by_hand(f"GB00{digits}")


# ---- replacement ---------------------------------------------------------------------------------------------------


def test_values_are_replaced_consistently_and_structure_stays():
    """In texts, thoughts, arguments at any depth, numbers, JSON in texts, JSON in JSON, extra and task."""
    card = CARD.replace(" ", "")
    inner = json.dumps(
        {"mail": MAIL, "at": f"line\n{MAIL}", "n": int(card), "f": float(card), "deep": json.dumps([MAIL])}
    )
    run = trajectory_of(
        f"I am {MAIL}",
        arguments={MAIL: [{"to": MAIL, "card": int(card), "yes": True, "none": None, "x": 1.5}], "raw": inner},
        result=inner,
        tools=[Tool("look", f"such as {MAIL}", {"properties": {"q": {"enum": [MAIL]}}})],
        outcome=Outcome(1.0, None, f"told {MAIL}"),
        provenance=Provenance("ours", "f", 0, 1, f"run of {MAIL}", f"write to {MAIL}"),
        extra={"instruction": {"who": MAIL}},
    )
    report = Report()
    done = scrubber(report).scrub(run)
    new = done.steps[0].message.text.removeprefix("I am ")
    number = done.steps[1].message.calls[0].arguments[MAIL][0]["card"]
    assert new.endswith(".invalid") and str(number).startswith("9999") and luhn(str(number))
    changed = {"mail": new, "at": f"line\n{new}", "n": number, "f": number, "deep": json.dumps([new])}
    expected = trajectory_of(
        f"I am {new}",
        arguments={
            MAIL: [{"to": new, "card": number, "yes": True, "none": None, "x": 1.5}],
            "raw": json.dumps(changed),
        },
        result=json.dumps(changed),
        tools=[Tool("look", f"such as {new}", {"properties": {"q": {"enum": [new]}}})],
        outcome=Outcome(1.0, None, f"told {new}"),
        provenance=Provenance("ours", "f", 0, 1, f"run of {MAIL}", f"write to {new}"),
        extra={"instruction": {"who": new}},
    )
    assert done == expected and [call.id for call in done.steps[1].message.calls] == ["c1"]
    assert report.left == {"email": 2}  # the key and the id: counted, not changed
    assert report.values == {"email": 1, "credit_card": 1}


def test_different_forms_of_a_value_get_the_same_replacement():
    phones = ["(212) 867-5309", "212.867.5309", "+1 212 867 5309", "+12128675309"]
    new = scrub_text(", ".join(phones)).split(", ")
    assert len({"".join(filter(str.isdigit, phone))[-10:] for phone in new}) == 1
    assert [_shape(phone) for phone in new] == [_shape(phone) for phone in phones] and not set(new) & set(phones)
    shouted, said = scrub_text("JOE@X.ORG joe@x.org").split()
    assert shouted[:5] == said[:5].upper() and said.islower()
    assert scrub_text("of 2a00:1450:4001::/48").startswith("of 2001:db8:")


def test_equal_domains_stay_equal():
    a, b, c = scrub_text("a.one@corp.com b.two@corp.com c.three@else.com").split()
    assert a.partition("@")[2] == b.partition("@")[2] != c.partition("@")[2]


def test_json_is_changed_in_place():
    text = '{ "a" :\t"é \\u0041 x@y.de", "x@y.de": -1.50, "s":["\\ud800","\\/"] }'
    assert is_json(text)
    names = []
    assert change_json(text, lambda s: s, lambda n: n, names.append) == text and names == ["a", "x@y.de", "s"]
    changed = change_json(text, lambda s: s.replace("x@y.de", "z"), lambda n: n, names.append)
    assert changed == text.replace('"é \\u0041 x@y.de"', '"é A z"')
    assert not is_json("[1" + "0" * 5000 + "]") and not is_json("[" * 100_000) and not is_json('{"a": }')


# ---- properties ----------------------------------------------------------------------------------------------------

_digits = lambda n: st.text("0123456789", min_size=n, max_size=n)
_word = st.text("abcdefghijkxyz", min_size=1, max_size=6)


def _with_check(digits):
    return next(found for c in range(10) if luhn(found := f"{digits}{c}"))


def _iban(country, digits):
    account = digits[: Iban.LENGTHS[country] - 4]
    return f"{country}{98 - mod97(f'{country}00{account}'):02}{account}"


VALUES = st.one_of(
    st.builds(lambda a, b, c: f"{a}.{b}@{c}.org", _word, _word, _word),
    st.builds(lambda d: _with_check(f"4{d}"), _digits(14)),
    st.builds(lambda c, d: _iban(c, d), st.sampled_from(["DE", "AT", "FR", "NO", "PL"]), _digits(30)),
    st.builds(lambda a, b, c: f"{a}-{b}-{c}", st.integers(100, 665), st.integers(10, 99), st.integers(1000, 9999)),
    st.builds(lambda a, b: f"212-{a}-{b}", st.integers(200, 554), st.integers(1000, 9999)),
    st.builds(lambda d: f"+44{d}", _digits(10)),
    st.builds(lambda a, b: f"93.184.{a}.{b}", st.integers(0, 255), st.integers(0, 255)),
    st.builds(lambda a: f"2606:2800:220:1:248:1893:25c8:{a:x}", st.integers(1, 65535)),
)
FILLERS = st.text(st.sampled_from('abc é"\\{}[]:,\n<|>'), max_size=12)


@settings(max_examples=60)
@given(st.lists(VALUES, min_size=1, max_size=6, unique=True), FILLERS)
def test_scrubbing_is_complete_consistent_and_idempotent(found, filler):
    said = f"{filler} " + f" ; {filler} ; ".join(found) + f" {filler}"
    record = {"key": found, "deep": [{"n": {"v": value}} for value in found], "said": said, "esc": f"\n{found[0]}\t"}
    run = trajectory_of(
        said, arguments=record, result=json.dumps(record), extra={"r": [json.dumps(json.dumps(record))]}
    )
    done = scrubber().scrub(run)
    line = ours.write(done)
    assert not [value for value in found if value in line]
    new = done.steps[1].message.calls[0].arguments
    assert len(set(new["key"])) == len(found) and not set(new["key"]) & set(found)
    assert [item["n"]["v"] for item in new["deep"]] == new["key"]
    assert json.loads(done.steps[2].message.text) == new == json.loads(json.loads(done.extra["r"][0]))
    assert done.steps[0].message.text == new["said"] == f"{filler} " + f" ; {filler} ; ".join(new["key"]) + f" {filler}"
    assert scrubber().scrub(done) == done and ours.write(scrubber().scrub(done)) == line


@settings(max_examples=60)
@given(st.lists(st.sampled_from([*SAMPLES.values(), "99", "-", ".", " ", "@", ":", "+", "x", "\\n", "1"]), max_size=14))
def test_scrubbing_adjacent_values_is_idempotent(pieces):
    """Which of several adjacent values are found may vary, but scrubbing again changes nothing."""
    text = "".join(pieces) or "x"
    done = scrubber().scrub(trajectory_of(text))
    assert scrubber().scrub(done) == done


def test_different_values_get_different_replacements():
    """Even with few replacements: 600 phone numbers of 80,000, and 36 one-letter mail names of 26 in a domain."""
    mails = [f"{a}@b.cd" for a in "abcdefghijklmnopqrstuvwxyz0123456789"]
    phones = [f"212-234-{n}" for n in range(1000, 1600)]
    done = scrubber().scrub(trajectory_of(" ".join(mails + phones)))
    assert len(set(done.steps[0].message.text.split())) == len(mails) + len(phones)


def test_a_replacement_that_already_occurs_is_not_used_again():
    rule = RULES["us_ssn"]
    taken = rule.write(rule.surrogate("123456789", Seeds(SALT, "us_ssn", "123456789", 0)), SSN)
    new = scrub_text(f"{SSN} {taken}").split()
    assert new[1] == taken and new[0] not in (SSN, taken)


# ---- config and extras ---------------------------------------------------------------------------------------------


def test_only_the_chosen_rules_apply():
    assert scrub_text(f"{MAIL} {SSN}", rules=["us_ssn"]).startswith(f"{MAIL} 9")


def test_a_missing_presidio_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(InputError, match=r"presidio needs the package presidio-analyzer"):
        scrubber(presidio=["PERSON"])


def _stand_in_for_presidio(monkeypatch):
    """An analyzer that knows one name."""

    class Engine:
        def __init__(self, **options):
            pass

        def analyze(self, text, language, entities, score_threshold):
            at = text.find("Ann Lee")
            kind = types.SimpleNamespace(start=at, end=at + 7, entity_type="PERSON")
            return [kind] if at >= 0 and "PERSON" in entities else []

    class Provider:
        def __init__(self, nlp_configuration):
            self.create_engine = lambda: None

    package = types.ModuleType("presidio_analyzer")
    package.AnalyzerEngine = Engine
    inner = types.ModuleType("presidio_analyzer.nlp_engine")
    inner.NlpEngineProvider = Provider
    monkeypatch.setitem(sys.modules, "presidio_analyzer", package)
    monkeypatch.setitem(sys.modules, "presidio_analyzer.nlp_engine", inner)


def test_presidio_as_a_rule(monkeypatch):
    _stand_in_for_presidio(monkeypatch)
    with pytest.raises(InputError, match="spaCy model no_such_model is not installed"):
        scrubber(presidio=["PERSON"], presidio_model="no_such_model")
    with_names = scrubber(presidio=["PERSON"], presidio_model="pytest")
    done = with_names.scrub(trajectory_of("I am Ann Lee."))
    name = done.steps[0].message.text
    assert name.startswith("I am <PERSON-") and done.steps[3].message.text == f"It is {name}."
    assert with_names.scrub(done) == done


def test_without_matches_the_trajectory_is_unchanged():
    run = trajectory_of("nothing here")
    assert scrubber().scrub(run) is run
    assert dataclasses.replace(run) == run


def test_real_trajectories(real_data):
    """Every mail address is replaced, in results and arguments, and scrubbing again changes nothing."""
    from data.trajectories import read_trajectories

    path = real_data / "tau_airline_gpt4o.jsonl"
    report = Report()
    for _, run in zip(range(20), read_trajectories(path), strict=False):
        scrub = scrubber(report)
        done = scrub.scrub(run)
        assert "@example.com" not in ours.write(done)
        assert scrub.scrub(done) is done
    assert report.values["email"] >= 10 and set(report.values) == {"email"}
