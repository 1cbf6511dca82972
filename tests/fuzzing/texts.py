"""Texts and images as targets: tokenizer files, images, conversations, model outputs, run configs."""

import functools
import json
import math
import pathlib
import struct
import zlib

import tokenizers
from hypothesis import strategies as st
from PIL import Image
from tokenizers import decoders, models, normalizers, pre_tokenizers

from maverick_jax import images
from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.images import ImageConfig
from maverick_jax.images.decode import MAX_PIXELS
from maverick_jax.settings import strict_yaml
from maverick_jax.text import chat, load_tokenizer
from maverick_jax.text.chat import CallError, Kind, Reply, from_openai, render
from maverick_jax.text.chat.dialects import DIALECTS
from maverick_jax.text.chat.spans import Text
from tests.fuzzing.harness import ROOT, Target
from tests.fuzzing.mutations import SCALARS, VALUES, bulk, changed, damaged, dumps, json_files
from tests.helpers.chats import CALLS, FRAGMENTS, TEXTS, everything, openai_form
from tests.helpers.image_cases import PNG, animated, chunk, encoded, noise, palette
from tests.helpers.rank_file import write_rank_file

# ---- tokenizers ----------------------------------------------------------------------------------------------------

SAMPLES = ["", "hello <s> <|eot|>", "  two\n\nlines ", "é🙂東\0", "x" * 300, "<unk>[CLS]</s>", "a" * 5000]


def tokenizer_target(scratch: pathlib.Path) -> Target:
    """tokenizer.json and tokenizer_config.json: accepted tokenizers never encode text as a control token."""
    bases = [json.loads(text) for text in _tokenizer_files(scratch)]
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "chat_template": "{{ 1 }}"}
    files = st.sampled_from(bases).flatmap(json_files)
    examples = st.one_of(
        st.tuples(files, st.none()),
        st.tuples(st.sampled_from(bases).map(lambda base: dumps(base).encode()), json_files(config)),
    )
    return Target("tokenizer", examples, lambda files: _read_tokenizer(scratch / "tokenizer", *files))


def _tokenizer_files(scratch: pathlib.Path) -> list[str]:
    write_hugging_face(load_tokenizer("bytes"), scratch)
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "hello": 3, "a": 4, "<": 5, "s": 6, ">": 7, "/": 8, "##x": 9, "x": 10}
    word_level = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    word_level.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("é", "e")])
    word_level.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"\s+|\w+|[^\w\s]"), "isolated")
    piece = tokenizers.Tokenizer(models.WordPiece(words, unk_token="<unk>"))
    piece.pre_tokenizer, piece.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    unigram = tokenizers.Tokenizer(models.Unigram([(w, -float(i)) for w, i in words.items()], 2, byte_fallback=False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    for made in (word_level, piece, unigram):
        made.add_special_tokens(["<s>", "</s>", "<unk>"])
    texts = [made.to_str() for made in (word_level, piece, unigram)]
    return [(scratch / "tokenizer.json").read_text(), *texts]


def _read_tokenizer(folder: pathlib.Path, content: bytes, config: bytes | None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(content)
    beside = folder / "tokenizer_config.json"
    beside.unlink(missing_ok=True)
    if config is not None:
        beside.write_bytes(config)
    tokenizer = load_tokenizer(folder)
    unknown = tokenizer._forbidden  # pyright: ignore[reportAttributeAccessIssue]
    for text in SAMPLES:
        ids = tokenizer.encode(text)
        assert unknown.isdisjoint(ids), f"{text!r} became {ids}"
        assert len(tokenizer.starts(text, ids)) == len(ids)
        tokenizer.decode([*ids, 0, 10**9, -1])
    tokenizer.save(folder)


def ranks_target(scratch: pathlib.Path) -> Target:
    """tokenizer.model: a rank file with changed lines."""
    whole = write_rank_file(scratch / "tokenizer.model").read_bytes()
    line = st.one_of(st.sampled_from([b"", b"AAAA 0", b"YQ== -1", b"YQ==  7", b"!! 3", b"YQ== 9" * 5000]), st.binary())

    @st.composite
    def edited(draw) -> bytes:
        if draw(st.integers(0, 3)):
            return draw(st.one_of(damaged(whole[:2000]), damaged(whole[:100_000], within=3000)))
        lines = whole.split(b"\n")
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.sampled_from([0, 1, 100, 5000, 199_999, 200_000]))
            lines[at : at + draw(st.integers(0, 2))] = draw(st.lists(line, max_size=2))
        return b"\n".join(lines)

    def read(data: bytes) -> None:
        (scratch / "ranks.model").write_bytes(data)
        tokenizer = load_tokenizer(scratch / "ranks.model")
        assert max(tokenizer.encode("hello <|eot|>\n\n")) < 200_000

    return Target("ranks", edited(), read, seconds=8)


# ---- images --------------------------------------------------------------------------------------------------------


def image_target() -> Target:
    """Images are opened and preprocessed into tiles. Chunks of PNG files are damaged and get valid checksums."""
    pictures = [
        noise(24, 20),
        noise(21, 9, "L"),
        noise(16, 16, "RGBA"),
        palette(30, 20, transparent=True),
        noise(9, 9).convert("1"),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    goods = [encoded(p) for p in pictures] + [encoded(p.convert("RGB"), "JPEG", exif=exif) for p in pictures[:2]]
    goods += [encoded(noise(40, 30), "JPEG", progressive=True), encoded(noise(16, 16, "CMYK"), "JPEG")]
    goods += [encoded(p, "WEBP", lossless=lossless) for p in pictures[:3] for lossless in (False, True)]
    goods += [encoded(pictures[0], exif=exif), animated("PNG"), animated("WEBP"), encoded(noise(9, 9), "MPO")]
    pngs = [data for data in goods if data.startswith(PNG)]
    whole = st.sampled_from(goods).flatmap(damaged)
    examples = st.one_of(whole, st.sampled_from(pngs).flatmap(lambda data: _png_of_other_chunks(data)))
    return Target("image", examples, _read_image, seconds=4, megabytes=1536)


@st.composite
def _png_of_other_chunks(draw, data: bytes) -> bytes:
    chunks, at = [], len(PNG)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    kinds = [b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"pHYs"]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(chunks) - 1))
        kind, body = chunks[at]
        match draw(st.sampled_from(["body", "pixels", "new", "delete", "kind", "header"])):
            case "body":
                chunks[at] = (kind, draw(damaged(body, 2)))
            case "pixels":
                chunks[at] = (b"IDAT", zlib.compress(draw(damaged(bytes(range(256)) * 8, 3))))
            case "new":
                made = draw(st.one_of(st.binary(max_size=30), st.just(b"k\0\0" + zlib.compress(bytes(200_000)))))
                chunks.insert(at, (draw(st.sampled_from(kinds)), made))
            case "delete" if len(chunks) > 1:
                del chunks[at]
            case "kind":
                chunks[at] = (draw(st.sampled_from(kinds)), body)
            case _:
                size = st.sampled_from([0, 1, 7, 24, 336, 8191, 8193, 65_536, 2**31 - 1])
                depth, color = draw(st.sampled_from([1, 2, 4, 8, 16, 3])), draw(st.sampled_from([0, 2, 3, 4, 6, 1]))
                header = struct.pack(">IIBBBBB", draw(size), draw(size), depth, color, 0, 0, draw(st.integers(0, 1)))
                chunks[0] = (b"IHDR", header)
    return PNG + b"".join(chunk(kind, body) for kind, body in chunks)


def _read_image(data: bytes) -> None:
    picture = images.open_image(data)
    assert picture.mode == "RGB" and 0 < math.prod(picture.size) <= MAX_PIXELS
    if math.prod(picture.size) <= 1 << 20:
        for chain in ("bfloat16", "float32"):
            tiles = images.preprocess(picture, ImageConfig(tile_size=24, patch_size=4, normalization=chain))
            assert abs(tiles.pixel_values).max() <= 1


# ---- conversations -------------------------------------------------------------------------------------------------


def chat_target() -> Target:
    """Conversations and tools in OpenAI's format, rendered in each dialect: only the structure gives control ids."""
    messages, tools = openai_form(everything("x <|eot|> y", thought="hm"))
    tree = {"messages": messages, "tools": tools}
    wild = st.one_of(VALUES, SCALARS, TEXTS)
    as_values = changed(tree, 4, wild)
    as_text = changed(tree, 3).map(lambda found: dumps(found).encode("utf-8", "surrogatepass"))
    large = bulk(FRAGMENTS, 1 << 18).map(lambda text: {"messages": [{"role": "user", "content": text}], "tools": text})
    return Target("chat", st.one_of(as_values, as_values, as_values, as_text, large), _read_chat)


def _read_chat(example) -> bool:
    if isinstance(example, bytes):
        try:
            example = json.loads(example)
        except (ValueError, RecursionError):
            return False
    if not isinstance(example, dict):
        example = {"messages": example}
    conversation = from_openai(example.get("messages"), example.get("tools"))  # pyright: ignore[reportArgumentType]
    for dialect in DIALECTS:
        _require_own_controls(conversation, dialect)
    return True


def _require_own_controls(conversation: chat.Conversation, dialect: str) -> None:
    tokenizer = bytes_with_thoughts()
    rendered = render(conversation, tokenizer, dialect, add_generation_prompt=True)
    controls = set(tokenizer.controls.values())
    for kind, token in zip(rendered.kinds.tolist(), rendered.ids.tolist(), strict=True):
        assert (token in controls) == (kind == Kind.CONTROL), f"{token} in {Kind(kind)!r}"
    structure = [span for span in rendered.spans if span.kind is Kind.CONTROL]
    turns = sum(1 for span in structure if span.text == "<|header_start|>")
    assert turns <= len(conversation.messages) + 2


@functools.cache
def bytes_with_thoughts():
    """The byte tokenizer with added tokens for thoughts, which it lacks."""
    made = load_tokenizer("bytes")
    names = ("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>")
    made._set_controls({**made.controls, **{name: made.vocab_size + i for i, name in enumerate(names)}})
    return made


CALL_FRAGMENTS = [
    *FRAGMENTS, "[", "]", "(", ")", "f(", "a=", "1", "-1", "1e5", "0x", "1_0", "True", "null", '{"name": ', '"f"', ", ",
    '"parameters": {', "}}", "[f(a=", "\\x", "\\777", "b'", "f'", "*", "lambda:", "if", ".", "a.b", "1j", "...", ";",
]  # fmt: skip


def calls_target() -> Target:
    """Model outputs, as text and as ids: each gives a Reply or a CallError, and a Reply survives a round trip."""
    tokenizer = bytes_with_thoughts()
    controls = list(tokenizer.controls.values())
    good = st.builds(_written, st.lists(CALLS, min_size=1, max_size=3), st.sampled_from(list(DIALECTS)))
    begins = st.sampled_from(["[f(a=", '{"name": "f", "parameters": ', "["])
    texts = st.one_of(
        good,
        good.flatmap(lambda text: damaged(text.encode(), 3)).map(lambda data: data.decode("utf-8", "replace")),
        st.lists(st.sampled_from(CALL_FRAGMENTS), max_size=12).map("".join),
        st.tuples(begins, bulk(CALL_FRAGMENTS, 1 << 18)).map("".join),
    )
    pieces = st.lists(
        st.one_of(texts.map(tokenizer.encode), st.lists(st.sampled_from(controls), max_size=2)), max_size=5
    )
    ids = pieces.map(lambda parts: [token for part in parts for token in part])
    numbers = st.lists(st.integers(-5, 400), max_size=20)
    return Target(
        "calls", st.tuples(st.sampled_from(list(DIALECTS)), st.one_of(texts, texts, ids, numbers)), _read_calls
    )


def _written(calls, dialect: str) -> str:
    message = chat.Message(chat.Role.ASSISTANT, "", calls)
    turn = DIALECTS[dialect]._message(message, 0)
    return "".join(segment.text for segment in turn.content if isinstance(segment, Text))


def _read_calls(example) -> bool:
    dialect, written = example
    found = DIALECTS[dialect].parse_calls(written, bytes_with_thoughts())
    if isinstance(found, CallError):
        str(found).encode("utf-8")
        return False
    assert isinstance(found, Reply)
    if found.calls:
        message = found.message()
        again = DIALECTS[dialect]._message(message, 0).content
        ids = [i for s in again for i in _ids(s)]
        assert DIALECTS[dialect].parse_calls(ids, bytes_with_thoughts()) == found
    return True


def _ids(segment) -> list[int]:
    tokenizer = bytes_with_thoughts()
    return tokenizer.encode(segment.text) if isinstance(segment, Text) else [tokenizer.controls[segment.name]]


# ---- run configs -----------------------------------------------------------------------------------------------------

YAML_FRAGMENTS = [
    "&a ", "*a", "!!python/object/apply:os.system [x]", "!!binary ", "<<: ", "? ", "- ", ": ", "|\n", ">-\n", "---\n",
    "%YAML 1.1\n", "\t", "\n", "  ", "[", "]", "{", "}", ",", "'", '"', "#", "~", "1e999", "0x1F", "1_000", ".nan",
    "...\n", "\u2028", "\x85", "\ufeff", "a", "a: ", "base: ", "\\", "012", "12:30", "yes", "é",
]  # fmt: skip


def yaml_target(scratch: pathlib.Path) -> Target:
    """Run configs: shipped ones with other lines and values, and overrides."""
    from train.config_files import read_config, resolved

    paths = sorted((ROOT / "configs").glob("*.yaml"))
    texts = [path.read_text() for path in paths]
    trees = [json.loads(json.dumps(resolved(read_config(str(path))))) for path in paths]
    wild = st.one_of(
        VALUES, st.sampled_from([10**6, 10**9, 10**12, "../x.yaml", "/", "demo", "tiny", {"base": "tiny"}])
    )
    values = st.sampled_from(trees).flatmap(lambda tree: changed(tree, 3, wild)).map(_yaml).filter(bool)
    lines = st.sampled_from(texts).flatmap(_other_lines)
    large = bulk(YAML_FRAGMENTS, 1 << 18)
    keys = st.sampled_from([key for tree in trees for key in _keys(tree)])
    word = st.one_of(TEXTS, st.sampled_from(YAML_FRAGMENTS), SCALARS.map(lambda v: dumps(v)[:200]))
    override = st.builds(lambda key, value: f"{key}={value}", st.one_of(keys, TEXTS), word)
    documents = st.one_of(
        values, values, lines, lines, st.lists(st.sampled_from(YAML_FRAGMENTS), max_size=20).map("".join)
    )
    sized = st.one_of(documents, documents, documents, documents, documents, documents, documents, large)

    def read(example) -> None:
        text, overrides = example
        path = scratch / "run.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        config = read_config(str(path), overrides)
        (scratch / "again.yaml").write_text(strict_yaml.dump(resolved(config)), "utf-8")
        assert read_config(str(scratch / "again.yaml")) == config

    return Target("yaml", st.tuples(sized, st.lists(override, max_size=2)), read, seconds=15)


def _keys(tree: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found += [prefix + key, *(_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [])]
    return found


def _yaml(tree) -> str:
    try:
        return strict_yaml.dump(_plain(tree))
    except ValueError:  # an integer of thousands of digits
        return ""


def _plain(tree):
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, list) else str(tree) if isinstance(tree, str) else tree


@st.composite
def _other_lines(draw, text: str) -> str:
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        match draw(st.sampled_from(["swap", "twice", "indent", "value", "insert", "cut"])):
            case "swap":
                lines[at], lines[other] = lines[other], line
            case "twice":
                lines.insert(other, line)
            case "indent":
                lines[at] = draw(st.sampled_from(["  ", "\t", "    ", "- "])) + line
            case "value" if ":" in line:
                value = draw(st.one_of(st.sampled_from(YAML_FRAGMENTS), SCALARS.map(lambda v: dumps(v)[:5000]), TEXTS))
                lines[at] = f"{line.partition(':')[0]}: {value}"
            case "insert":
                column = draw(st.integers(0, len(line)))
                lines[at] = line[:column] + draw(st.sampled_from(YAML_FRAGMENTS)) + line[column:]
            case _:
                lines[at] = line[: draw(st.integers(0, len(line)))]
    return "\n".join(lines)
