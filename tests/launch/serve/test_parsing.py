"""A reply read in pieces, however it is split, is the reply read as a whole."""

import itertools
import random

import pytest

from launch.serve.parsing import MAX_OPENING, ReplyReader, TextCutter, TextReader, WholeReply
from maverick_jax.inference.engine.requests import Finish
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import DIALECTS, CallError, ToolCall, find_dialect
from maverick_jax.text.chat.reply import STOPS, pieces_of, take_thought, written
from tests.helpers.chats import FRAGMENTS
from tests.helpers.replies import BYTES, CALLS, THINK, THOUGHT, ThinkingBytes, calls_of, ids_of


def read(ids, dialect, splits=(), finish=Finish.STOP, tokenizer=BYTES, stop_texts=()) -> tuple[WholeReply, list]:
    """The reply, and the pieces it came in, with the tokens split at the given places."""
    reader = ReplyReader(tokenizer, dialect and find_dialect(dialect), (), stop_texts)
    bounds = [0, *sorted(splits), len(ids)]
    pieces = [reader.add(ids[a:b]) for a, b in itertools.pairwise(bounds)]
    rest, whole = reader.finish(finish)
    return whole, [*pieces, rest]


def expected(ids, dialect, finish=Finish.STOP, tokenizer=BYTES) -> tuple[str, str, tuple]:
    """The slow twin: text, thought and calls of the whole reply, each from one look at all tokens."""
    pieces = pieces_of(ids, tokenizer)
    thinks = bool(pieces) and not isinstance(pieces[0], str) and pieces[0].name == THINK
    end = next((i for i, p in enumerate(pieces) if not isinstance(p, str) and p.name == THOUGHT), len(pieces))
    thought, body = (written(pieces[1:end]), pieces[end + 1 :]) if thinks else ("", pieces)
    if dialect is None or finish is not Finish.STOP:
        return written(body), thought, ()
    found = find_dialect(dialect).parse_calls(ids, tokenizer)
    if isinstance(found, CallError):
        return written(body), thought, ()
    return found.text, thought, tuple(found.calls)


def random_reply(draw: random.Random, dialect: str | None) -> list[int]:
    """Texts, halves of characters, thoughts, calls of any dialect, whole or damaged, and stray control tokens."""
    ids: list[int] = []
    if draw.random() < 0.4:
        ids += ids_of(
            [THINK, *draw.choices(FRAGMENTS, k=draw.randint(0, 3)), *([THOUGHT] if draw.random() < 0.8 else [])]
        )
    if dialect and draw.random() < 0.4:
        text = draw.choice(["", "", "Sure: "]) if dialect != "hugging_face" else ""
        return ids + calls_of(dialect, draw.sample(CALLS, draw.randint(1, 3)), text=text)
    for _ in range(draw.randint(0, 4)):
        kind = draw.random()
        if kind < 0.35:
            ids += ids_of(draw.choices([*FRAGMENTS, "Hello ", "[1, 2]", "{}", "   ", "\n["], k=draw.randint(1, 4)))
        elif kind < 0.75:
            called = calls_of(draw.choice(list(DIALECTS)), draw.sample(CALLS, draw.randint(1, 3)),
                              text=draw.choice(["", "", "Sure: "]))[:-1]  # fmt: skip
            ids += called[: draw.randint(0, len(called))] if draw.random() < 0.2 else called
        elif kind < 0.9:
            ids += [draw.choice([0xE2, 0x82, 0xAC, 0xFF, 0xC3, 0xF0, 0x9F]) for _ in range(draw.randint(1, 5))]
        else:
            ids += ids_of([draw.choice([THINK, THOUGHT, "<|python_start|>", "<|python_end|>", "<|header_start|>"])])
    return ids + ids_of([draw.choice(STOPS)] if draw.random() < 0.8 else [])


def check_splits(seed: int) -> WholeReply:
    draw = random.Random(seed)
    dialect = draw.choice([*DIALECTS, *DIALECTS, None])
    ids = random_reply(draw, dialect)
    finish = draw.choice([Finish.STOP, Finish.STOP, Finish.STOP, Finish.LENGTH])
    whole, _ = read(ids, dialect, (), finish)
    text, thought, calls = expected(ids, dialect, finish)
    assert (whole.text, whole.thought, tuple(whole.calls)) == (text, thought, calls), seed
    splits = [draw.randint(0, len(ids)) for _ in range(draw.randint(1, 12))]
    again, pieces = read(ids, dialect, splits, finish)
    assert again == whole, seed
    assert "".join(piece.text for piece in pieces) == text, seed
    assert "".join(piece.thought for piece in pieces) == thought, seed
    places = [place for piece in pieces for place in piece.tokens]
    assert places == sorted(set(places)), seed
    return whole


def test_replies_split_at_random_are_the_whole():
    found = [check_splits(seed) for seed in range(500)]
    assert sum(bool(whole.calls) for whole in found) > 60
    assert sum(whole.error is not None for whole in found) > 60
    assert sum(bool(whole.thought) for whole in found) > 60


@pytest.mark.slow
def test_many_replies_split_at_random_are_the_whole():
    assert len([check_splits(seed) for seed in range(10_000)]) == 10_000


@pytest.mark.parametrize("dialect", DIALECTS)
def test_calls_come_at_the_end_and_text_before_them_at_once(dialect):
    ids = calls_of(dialect, CALLS)
    whole, pieces = read(ids, dialect, range(len(ids)))
    assert tuple(whole.calls) == CALLS and whole.error is None
    assert all(piece.text == "" and piece.tokens == () for piece in pieces)
    reader = ReplyReader(BYTES, find_dialect(dialect))
    assert reader.add(ids_of(["Let me see"])).text == "Let me see"


def test_a_reply_that_begins_like_calls_but_is_text_is_sent_as_soon_as_that_is_clear():
    reader = ReplyReader(BYTES, find_dialect("meta_pythonic"))
    assert reader.add(ids_of(["  [list"])).text == ""
    piece = reader.add(ids_of([", items"]))
    assert piece.text == "  [list, items" and piece.tokens == tuple(range(14))


def test_a_malformed_call_stays_text_with_the_reason():
    ids = ids_of(["Well: ", "<|python_start|>", "[f(x=)]", "<|python_end|>", "<|eot|>"])
    whole, pieces = read(ids, "meta_pythonic", [3, 9])
    assert whole.text == "Well: <|python_start|>[f(x=)]<|python_end|>" and not whole.calls
    assert "not a list of calls" in (whole.error or "")
    assert "".join(piece.text for piece in pieces) == whole.text


def test_a_cut_reply_has_no_calls_and_all_its_text():
    ids = calls_of("meta_pythonic", CALLS[:1])[:-1]
    whole, _ = read(ids, "meta_pythonic", (), Finish.LENGTH)
    assert whole.text == '[get_weather(city="Paris")]' and not whole.calls
    assert whole.error == "cut before the end of its calls"


def test_thoughts_are_apart_and_counted():
    ids = ids_of([THINK, "hmm €", THOUGHT, "Yes", "<|eot|>"])
    whole, pieces = read(ids, "meta_json", range(len(ids)))
    assert (whole.thought, whole.text, whole.thought_tokens) == ("hmm €", "Yes", 9)
    assert [place for piece in pieces for place in piece.tokens] == [9, 10, 11]


def test_without_tools_calls_are_text():
    ids = calls_of("meta_pythonic", CALLS[:1])
    whole, pieces = read(ids, None, [1, 2])
    assert whole.text == '[get_weather(city="Paris")]' == "".join(piece.text for piece in pieces)
    assert not whole.calls and whole.error is None


@pytest.mark.parametrize("stop", ["X", "XYZ", "\n\n", "b"])
def test_stop_texts_cut_the_text_at_any_split(stop):
    text = f"aaa XY a\n b{stop} and more"
    cut = text[: text.index(stop)]
    for at in range(len(text)):
        whole, pieces = read(ids_of([text]), "meta_pythonic", [at], stop_texts=(stop,))
        assert whole.text == cut == "".join(piece.text for piece in pieces) and whole.stop_text


def test_what_may_begin_a_stop_text_is_held_and_released():
    cutter = TextCutter(["abc", "cd"])
    assert [cutter.add("xa"), cutter.add("b"), cutter.add("a"), cutter.finish()] == ["x", "", "ab", "a"]
    assert not cutter.found


def test_a_text_that_is_no_message_leaves_control_tokens_out_and_has_all_places():
    reader = TextReader(BYTES)
    piece = reader.add(ids_of(["[f()] ", "<|python_start|>", "é"]))
    rest, whole = reader.finish(Finish.STOP)
    assert piece.text + rest.text == whole.text == "[f()] é"
    assert piece.tokens == tuple(range(9))


class CountingBytes(ThinkingBytes):
    """Counts the tokens that are decoded."""

    def __init__(self):
        super().__init__()
        self.decoded = 0

    def _decode(self, ids):
        self.decoded += len(ids)
        return super()._decode(ids)

    def bytes_of(self, token):
        self.decoded += 1
        return super().bytes_of(token)


@pytest.mark.parametrize("filling", ["[", " ", "a", "\ufffd", "[a", '{"name', '[f(x="', "\xff"])
def test_the_work_for_a_long_reply_grows_with_its_length(filling):
    """Tokens are decoded at most a fixed number of times each, and a possible beginning of calls is looked at no more
    often than MAX_OPENING characters allow."""
    tokenizer, looked = CountingBytes(), []

    dialect = find_dialect("meta_pythonic")
    reader = ReplyReader(tokenizer, dialect)
    original = dialect.begins_call
    dialect.begins_call = lambda text: looked.append(len(text)) or original(text)  # pyright: ignore
    try:
        ids = tokenizer.encode(filling * (20_000 // len(filling.encode())))
        for token in ids:
            reader.add([token])
        reader.finish(Finish.STOP)
    finally:
        del dialect.begins_call
    assert tokenizer.decoded <= 80 * len(ids)
    assert sum(looked) <= MAX_OPENING * (MAX_OPENING + 2) and max(looked) <= max(MAX_OPENING + 4, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_reply_of_two_mebibytes_takes_about_twice_the_time_of_one(dialect):
    import time

    def seconds(size: int) -> float:
        call = calls_of(dialect, [ToolCall("write", {"text": "x" * (size // 4 - 64)})] * 4)
        begin = time.process_time()
        whole, _ = read(call, dialect)
        assert whole.calls or whole.error
        return time.process_time() - begin

    seconds(1 << 16)
    assert seconds(1 << 21) < 8 * seconds(1 << 20)


@pytest.mark.parametrize("name", ["bytes", "llama4"])
def test_the_reader_gives_what_decode_gives(name, request):
    tokenizer = load_tokenizer("bytes") if name == "bytes" else request.getfixturevalue("small_llama4")
    draw = random.Random(1)
    for _ in range(50):
        ids = [draw.randrange(256) if draw.random() < 0.5 else draw.randrange(tokenizer.vocab_size) for _ in range(40)]
        ids = [i for i in ids if i not in tokenizer.controls.values()]
        whole, _ = read(ids, None, [draw.randint(0, 40)], tokenizer=tokenizer)
        assert whole.text == tokenizer.decode(ids)


def test_a_thought_is_what_the_whole_parse_says():
    ids = ids_of([THINK, "a", THOUGHT, "b"])
    assert take_thought(pieces_of(ids, BYTES))[0] == read(ids, "meta_json")[0].thought == "a"
