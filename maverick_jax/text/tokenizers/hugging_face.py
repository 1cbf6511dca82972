"""Tokenizers in Hugging Face's `tokenizer.json`."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from maverick_jax.errors import InputError
from maverick_jax.text.chat import template
from maverick_jax.text.tokenizers.base import JSON_FILE, Tokenizer, digest, read_file

CONFIG_FILE, MAP_FILE = "tokenizer_config.json", "special_tokens_map.json"
ROLES = {
    "bos_token": ("<|begin_of_text|>", "<|startoftext|>", "<s>", "<bos>", "[BOS]", "[CLS]"),
    "eos_token": ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "[EOS]", "[SEP]"),
    "pad_token": ("<|finetune_right_pad|>", "<|finetune_right_pad_id|>", "<pad>", "[PAD]"),
}
"""Usual names of each role's token, tried if a `tokenizer.json` comes without `tokenizer_config.json`."""
MAX_LISTS, MAX_TOKEN, MAX_GROWTH = 4_000_000, 1 << 16, 1024
"""Limits: lists and objects in a `tokenizer.json` (a merge may be a list), characters of a token, and the factor by
which its replacements may lengthen a text. Without them a small file could exhaust the memory."""


def _byte_of() -> dict[str, int]:
    """The character that a byte-level vocabulary has for each byte, as GPT-2 chose them: the byte's own if it can be
    seen, or else one of the characters from U+0100 on, in order."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_of()


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`; the begin, end and padding tokens come from `tokenizer_config.json` in the same folder."""

    def __init__(self, path: str | pathlib.Path):
        """Read the file at `path`. Raises InputError naming the file and, for malformed JSON, the line."""
        path = pathlib.Path(path)
        self._content = read_file(path)
        data = _parse_json(self._content, path)
        if not isinstance(data.get("model"), dict):
            raise InputError(f"{path}: line 1: expected an object `model`, as the tokenizers library writes it")
        self._tokenizer = _build(self._content, data, path)
        self.name = str(path)
        self._writes_bytes = (data.get("decoder") or {}).get("type") == "ByteLevel"
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocab.values(), default=-1)
        if self.vocab_size == 0:
            raise InputError(f"{path}: the vocabulary is empty")
        if (longest := max(map(len, vocab))) > MAX_TOKEN:
            raise InputError(f"{path}: a token of {longest:,} characters; expected at most {MAX_TOKEN:,}")
        controls = {token["content"]: token["id"] for token in data.get("added_tokens") or () if _is_control(token)}
        self._set_controls(controls)
        self._forbidden = frozenset(controls.values()) - {_unknown_id(data["model"])}
        self.kept = Kept.of(path.parent)
        self._roles = _roles(controls, self.kept.config, path.parent / CONFIG_FILE)
        self.bos_id, self.eos_id = controls.get(self._roles["bos_token"]), controls.get(self._roles["eos_token"])
        pad_id = controls.get(self._roles["pad_token"])
        # Padding is masked everywhere, so any id works if the tokenizer has no padding token.
        self.pad_id = pad_id if pad_id is not None else self.eos_id or 0
        self.dialect = template.dialect_in(path.parent)
        self.fingerprint = digest(b"tokenizer.json", self._content, json.dumps(self._roles, sort_keys=True).encode())

    def save(self, directory: str | pathlib.Path) -> None:
        folder = pathlib.Path(directory)
        (folder / JSON_FILE).write_bytes(self._content)
        write_config(folder, {role: text for role, text in self._roles.items() if text}, {}, self.dialect, self.kept)

    def bytes_of(self, token: int) -> bytes | None:
        if not self._writes_bytes or self._kind(token) != "ordinary":
            return None
        written = self._tokenizer.id_to_token(token)
        if written is None:
            return None
        if any(character not in BYTE_OF for character in written):
            return written.encode()  # an added token, such as white space, is written as it is
        return bytes(BYTE_OF[character] for character in written)

    def starts(self, text: str, ids: Sequence[int]) -> list[int]:
        with _named_failure(self.name):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        starts = [begin for begin, _ in encoding.offsets]
        if self._forbidden.isdisjoint(encoding.ids):
            return starts
        spelled = [self._as_text([token]) for token in encoding.ids]
        return [start for start, tokens in zip(starts, spelled, strict=True) for _ in tokens]

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with _named_failure(self.name):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._as_text(encoding.ids) for encoding in encodings]

    def _decode(self, ids: list[int]) -> str:
        with _named_failure(self.name):
            return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _as_text(self, ids: list[int]) -> list[int]:
        """`ids` with every control token replaced by the ids of its characters. Models with whole words (Unigram,
        WordLevel) have control tokens in their vocabulary and find them in text even with `encode_special_tokens`."""
        if self._forbidden.isdisjoint(ids):
            return ids
        return [i for token in ids for i in (self._spelled(token) if token in self._forbidden else (token,))]

    def _spelled(self, token: int) -> list[int]:
        text = self._tokenizer.id_to_token(token) or ""
        spelled = [piece.id for character in text for piece in self._tokenizer.model.tokenize(character)]
        if not self._forbidden.isdisjoint(spelled):
            raise InputError(f"{self.name}: {text!r} in a text cannot be encoded except as the control token")
        return spelled


@dataclasses.dataclass(frozen=True)
class Kept:
    """What came with a `tokenizer.json` and is written again with it, although nothing is computed from it."""

    config: Mapping[str, Any] | None = None
    """`tokenizer_config.json`; None: there was none."""
    template: bytes | None = None
    """`chat_template.jinja`, if it is not one of ours."""
    more_tokens: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `special_tokens_map.json` says besides the tokens of ROLES."""

    @classmethod
    def of(cls, folder: pathlib.Path) -> "Kept":
        """Raises InputError if `tokenizer_config.json` or `special_tokens_map.json` is malformed."""
        config, tokens = (
            _parse_json(read_file(path), path) if path.is_file() else None
            for path in (folder / CONFIG_FILE, folder / MAP_FILE)
        )
        more = {key: value for key, value in (tokens or {}).items() if key not in ROLES}
        return cls(config, template.foreign_in(folder), more)

    def without_template(self) -> "Kept":
        config = self.config and {key: value for key, value in self.config.items() if key != "chat_template"}
        return dataclasses.replace(self, config=config, template=None)


NOTHING = Kept()


def write_config(
    folder: pathlib.Path,
    roles: Mapping[str, str],
    added: Mapping[str, int],
    dialect: str | None,
    kept: Kept = NOTHING,
) -> None:
    """Write the files that accompany a `tokenizer.json`: the begin, end and padding tokens (`roles`, keyed as ROLES),
    the `added` control tokens (written form -> id), the chat template of `dialect`, and what was `kept`."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    ours = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {str(i): {"content": text, **flags} for text, i in added.items()},
    }
    theirs = {k: v for k, v in (kept.config or {}).items() if k != "auto_map" and (k not in ROLES or k in roles)}
    if kept.config and "auto_map" in kept.config:  # it names code to run, and the class is that code's
        theirs.pop("tokenizer_class", None)
    config = {**theirs, **{key: value for key, value in ours.items() if key not in theirs or key in roles}}
    for name, content in ((CONFIG_FILE, config), (MAP_FILE, {**roles, **kept.more_tokens})):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if dialect is not None:
        (folder / template.FILE).write_text(template.chat_template(dialect), "utf-8")
    elif kept.template is not None:
        (folder / template.FILE).write_bytes(kept.template)


def _parse_json(content: bytes, path: pathlib.Path) -> dict:
    if content.count(b"[") + content.count(b"{") > MAX_LISTS:
        raise InputError(f"{path}: more than {MAX_LISTS:,} lists and objects, the limit for a tokenizer file")
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line}: not UTF-8: {error.reason}") from None
    except RecursionError:
        raise InputError(f"{path}: line 1: JSON nested too deeply") from None
    except ValueError as error:  # a number with thousands of digits
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: line 1: expected a JSON object")
    return data


def _build(content: bytes, data: dict, path: pathlib.Path) -> tokenizers.Tokenizer:
    with _named_failure(str(path), "not a tokenizer"):
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        # The library finds added tokens that are not marked special in text; here they are control tokens too.
        unmarked = [t for t in data.get("added_tokens") or () if _is_control(t) and not t.get("special")]
        if unmarked:
            added = [{**t, "special": True} if _is_control(t) else t for t in data["added_tokens"]]
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**data, "added_tokens": added}))
    growth = max(_growth(data.get(part)) for part in ("normalizer", "pre_tokenizer", "decoder"))
    if growth > MAX_GROWTH:
        raise InputError(f"{path}: its replacements can make a text more than {MAX_GROWTH} times as long")
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@contextlib.contextmanager
def _named_failure(name: str, what: str = "cannot tokenize this text") -> Iterator[None]:
    """Turns errors of the library inside the block into InputError. On some malformed files it panics, sometimes only
    once it is given a text, and its PanicException is not an Exception."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{name}: {what}: {error}") from None


def _growth(part: Any) -> int:
    """Largest factor by which the replacements in `part` of a tokenizer can lengthen a text, applied in order; capped
    at MAX_GROWTH + 1."""
    grown = 1
    if isinstance(part, dict):
        content = part.get("content")
        grown = 1 + len(content) if isinstance(content, str) else 1
        part = [part.get(inner) for inner in ("normalizers", "pretokenizers", "decoders")]
    for inner in part if isinstance(part, list) else ():
        grown = min(grown * _growth(inner), MAX_GROWTH + 1)
    return min(grown, MAX_GROWTH + 1)


def _is_control(token: dict) -> bool:
    """Whether an added token is a control token: all are, except whitespace, which is ordinary text."""
    return bool(token["content"].strip())


def _unknown_id(model: Mapping) -> int | None:
    """Id for text that the vocabulary lacks, or None. It may occur in encoded text, since it controls nothing."""
    if isinstance(model.get("unk_id"), int):
        return model["unk_id"]
    vocab, token = model.get("vocab"), model.get("unk_token")
    return vocab.get(token) if isinstance(vocab, dict) and isinstance(token, str) else None


def _roles(
    controls: Mapping[str, int], config: Mapping[str, Any] | None, config_path: pathlib.Path
) -> dict[str, str | None]:
    """Written form of the begin, end and padding tokens, keyed as ROLES; None for a role without a token. `config`: the
    content of `config_path`, if there is one."""
    if config is None:
        return {role: next((n for n in names if n in controls), None) for role, names in ROLES.items()}
    roles = {}
    for role in ROLES:
        text = config.get(role)
        text = text.get("content") if isinstance(text, dict) else text
        if text is not None and not isinstance(text, str):
            raise InputError(f"{config_path}: {role}: expected text, got {type(text).__name__}")
        if text is not None and text not in controls:
            raise InputError(f"{config_path}: {role}: {text!r:.80} is not an added token of {JSON_FILE}")
        roles[role] = text
    return roles
