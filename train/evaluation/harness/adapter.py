"""The adapter between lm-evaluation-harness and an engine. Importing it needs the extra `eval`.

Every sequence begins with one begin token, by its id: texts never contain it. Prompts of chats are rendered segment by
segment, so that a control token's name in a message is ordinary text."""

import collections
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data.graders.loops import loop_in
from maverick_jax.errors import InputError
from maverick_jax.inference.engine import Engine, GenerationRequest
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.inference.sampling import Sampling
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Conversation, from_openai, render
from maverick_jax.text.chat import chat_template as template_of
from train.evaluation.asking import (
    Continuation,
    OnProgress,
    begin_ids,
    continuation,
    dialect_of,
    likelihoods,
    prompt_ids,
    written,
)

DEFAULT_TOKENS = 256
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens")
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
KNOWN = ("until", "do_sample", *LIMITS, *SETTINGS)


class ChatPrompt(str):
    """A rendered conversation that still has its messages."""

    conversation: Conversation
    begun: str
    """The beginning of the next message, which the model goes on with; mostly empty."""

    @classmethod
    def of(cls, text: str, conversation: Conversation, begun: str) -> "ChatPrompt":
        made = cls(text)
        made.conversation, made.begun = conversation, begun
        return made


class EngineModel(LM):
    """An engine as a model of lm-evaluation-harness."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, on_progress: OnProgress = lambda done: None):
        """Raises InputError for a tokenizer without a begin token."""
        super().__init__()
        if tokenizer.bos_id is None and tokenizer.eos_id is None:
            raise InputError("the tokenizer has neither a begin nor an end token; an empty context needs one")
        self.engine, self.tokenizer, self.on_progress = engine, tokenizer, on_progress
        self.counts = collections.Counter[str]()
        self.chats = False

    # ---- what the harness asks for ----

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that gives the same text as `apply_chat_template`, for the harness's records."""
        self.chats = bool(chat_template)
        return template_of(dialect_of(self.tokenizer))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        self.chats = True
        history = list(chat_history)
        begun = "" if add_generation_prompt else str(history.pop()["content"])
        conversation = from_openai(history)
        rendered = render(conversation, self.tokenizer, dialect_of(self.tokenizer), add_generation_prompt=True)
        text = self.tokenizer.decode(rendered.ids.tolist(), controls=True)
        return ChatPrompt.of(text + begun, conversation, begun)

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        asked = [self._fitting(self._pair(*_texts(request))) for request in requests]
        return self._scored(asked)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Windows of the harness: each token of a document is predicted once, the first after a begin token."""
        asked, counts = [], []
        for request in requests:
            (text,) = request.args[:1]
            windows = get_rolling_token_windows(self.tokenizer.encode(text), self._prefix(), self._longest(), 1)
            found = [Continuation(a + b, len(a)) for a, b in map(make_disjoint_window, windows)]
            counts.append(len(found))
            asked += found
        scores = iter(self._scored(asked))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        ends, repeats = stop_ids(self.tokenizer), collections.Counter[str]()
        asked: list[GenerationRequest] = []
        for request in requests:
            if len(request.args) > 2:
                raise InputError("pictures in harness tasks are not supported; expected a task without doc_to_image")
            context, settings = request.args
            limit, until, sampling = _settings(settings)
            again = repeats[context]
            repeats[context] += 1
            prompt = self._prompt(context)
            room = self.engine.context - limit
            if room < 2:
                raise InputError(f"max_gen_toks: {limit:,}; expected at most {self.engine.context - 2:,}")
            prompt = self._cut(prompt, room)
            seed = zlib.crc32(f"{again} {context}".encode("utf-8", errors="replace"))
            asked.append(GenerationRequest(prompt, limit, sampling, seed, ends, until))
        return [
            self._text(request, answer.tokens, answer.cut)
            for request, answer in zip(asked, written(self.engine, asked, self.on_progress), strict=True)
        ]

    # ---- tokens ----

    def _prefix(self) -> int:
        """The token before the first one of an empty context."""
        found = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eos_id
        assert found is not None
        return found

    def _longest(self) -> int:
        """Most tokens that a prediction can follow."""
        return self.engine.context - 1

    def _pair(self, context: str, text: str) -> Continuation:
        if isinstance(context, ChatPrompt):
            before = self._prompt(context)
            return Continuation(before + self.tokenizer.encode(text), len(before))
        self._require_messages(context)
        if context == "":
            return Continuation([self._prefix(), *self.tokenizer.encode(text)], 1)
        return continuation(context, text, self.tokenizer)

    def _prompt(self, context: str) -> list[int]:
        if isinstance(context, ChatPrompt):
            ids = prompt_ids(context.conversation, self.tokenizer)
            return ids + self.tokenizer.encode(context.begun) if context.begun else ids
        self._require_messages(context)
        found = prompt_ids(context, self.tokenizer)
        return found or [self._prefix()]

    def _require_messages(self, context: str) -> None:
        """The messages of a chat must not be lost on their way: its text alone has no control tokens."""
        if self.chats and context:
            raise InputError(
                "the harness gives a chat as plain text; its control tokens would be read as ordinary text"
            )

    def _fitting(self, asked: Continuation) -> Continuation:
        """A sequence that fits the engine: of one that is too long, the context is cut from the left, behind the begin
        token."""
        own = len(asked.tokens) - asked.begin
        if own >= self.engine.context:
            raise InputError(f"a continuation of {own:,} tokens; expected fewer than {self.engine.context:,}")
        tokens = self._cut(asked.tokens, self.engine.context)
        return Continuation(tokens, len(tokens) - own)

    def _cut(self, tokens: list[int], most: int) -> list[int]:
        if len(tokens) <= most:
            return tokens
        self.counts["contexts_cut"] += 1
        begin = begin_ids(self.tokenizer)
        return [*begin, *tokens[len(tokens) - most + len(begin) :]]

    def _scored(self, asked: Sequence[Continuation]) -> list[tuple[float, bool]]:
        self.counts["scored"] += len(asked)
        return [(one.log_prob, one.greedy) for one in likelihoods(self.engine, asked, self.on_progress)]

    def _text(self, request: GenerationRequest, tokens: Sequence[int], cut: bool) -> str:
        """What was written, up to the first stop text."""
        self.counts["written"] += 1
        self.counts["cut"] += cut
        self.counts["loop"] += cut and loop_in(tokens) is not None
        text = self.tokenizer.decode([token for token in tokens if token not in request.stop_ids])
        places = [place for stop in request.stop_texts if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text


def _texts(request) -> tuple[str, str]:
    if len(request.args) > 2:
        raise InputError("pictures in harness tasks are not supported; expected a task without doc_to_image")
    context, text = request.args
    return context, text


def _settings(given: Mapping[str, Any]) -> tuple[int, tuple[str, ...], Sampling]:
    """Limit of tokens, stop texts and sampling of a request. Unknown settings are errors, because they would change
    the answers. Without `do_sample`, a temperature above 0 samples."""
    for name in given:
        if name not in KNOWN:
            raise InputError(f"generation_kwargs: {name!r:.80}: unknown setting{did_you_mean(str(name), KNOWN)}")
    limits = [int(given[name]) for name in LIMITS if given.get(name) is not None]
    until = given.get("until") or []
    until = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    temperature = float(given.get("temperature") or 0.0)
    if given.get("do_sample") is False:
        temperature = 0.0
    elif given.get("do_sample") and "temperature" not in given:
        temperature = 1.0
    kept = {name: given[name] for name in SETTINGS[1:] if given.get(name) is not None}
    return (limits[0] if limits else DEFAULT_TOKENS), until, Sampling(temperature=temperature, **kept)
