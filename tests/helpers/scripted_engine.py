"""An engine without a model: what it writes is a function of the request. For tests of what stands on engines."""

import collections
import hashlib
import threading
from collections.abc import Callable, Sequence

import numpy as np

from maverick_jax.errors import InputError, QueueFull
from maverick_jax.inference.engine.requests import (
    Engine,
    EngineStatus,
    Finish,
    Generation,
    GenerationRequest,
    TokenScore,
    Update,
)
from maverick_jax.text import Tokenizer

Script = Callable[[GenerationRequest], Sequence[int]]


def echo_digest(tokenizer: Tokenizer) -> Script:
    """Writes a digest of prompt and seed, then ends."""

    def write(request: GenerationRequest) -> list[int]:
        digest = hashlib.sha256(repr((list(request.prompt), request.seed)).encode()).hexdigest()[:24]
        return [*tokenizer.encode(f"seen {digest}"), tokenizer.controls["<|eot|>"]]

    return write


def obedient(tokenizer: Tokenizer) -> Script:
    """Does what the last message says: after `WRITE` writes the rest of it, at `THINK` thinks first, repeats what a
    tool said, counts the tiles it sees, and otherwise greets."""
    controls = tokenizer.controls

    def write(request: GenerationRequest) -> list[int]:
        ids = list(request.prompt)
        ends = [i for i, token in enumerate(ids) if token in (controls["<|eot|>"], controls["<|eom|>"])]
        last = ids[ends[-2] + 1 if len(ends) > 1 else 0 : ends[-1]] if ends else ids
        begin = len(last) - last[::-1].index(controls["<|header_end|>"]) if ends else 0
        role, said = tokenizer.decode(last[:begin]), tokenizer.decode(last[begin:]).strip()
        thought: list[int] = []
        if "THINK" in said and "<|reasoning_thinking_start|>" in controls:
            marks = controls["<|reasoning_thinking_start|>"], controls["<|reasoning_thinking_end|>"]
            thought = [marks[0], *tokenizer.encode("Let me think."), marks[1]]
        if role.endswith("ipython"):
            text = f"The tool said: {said}"
        elif "WRITE " in said:
            text = said.split("WRITE ", 1)[1]
        elif request.tiles is not None:
            text = f"I see {len(request.tiles)} tiles."
        else:
            text = f"Hello! You said: {said}"
        return [*thought, *tokenizer.encode(text), controls["<|eot|>"]]

    return write


class ScriptedEngine(Engine):
    """Writes one token of every active generation a step. `pause` stops the steps until `go`."""

    def __init__(self, tokenizer: Tokenizer, script: Script | None = None, slots: int = 8, context: int = 65_536):
        self.tokenizer, self.script = tokenizer, script or echo_digest(tokenizer)
        self.vocab_size, self.context, self.slots, self.most_queued = tokenizer.vocab_size, context, slots, 64
        self.requests: list[GenerationRequest] = []
        self.steps = self.prompt_tokens = self.generated = 0
        self.finished: collections.Counter[Finish] = collections.Counter()
        self.sessions: dict[tuple[str, str], list[int]] = {}
        self._waiting: collections.deque[_Running] = collections.deque()
        self._active: list[_Running] = []
        self._changed, self._closed, self._going = threading.Condition(), False, True
        self._thread = threading.Thread(target=self._run, name="scripted engine", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        with self._changed:
            self._going = False

    def go(self) -> None:
        with self._changed:
            self._going = True
            self._changed.notify_all()

    def submit(self, request: GenerationRequest, n: int = 1) -> list[Generation]:
        if not request.prompt or any(not 0 <= token < self.vocab_size for token in request.prompt):
            raise InputError("prompt: expected token ids of the vocabulary")
        if len(request.prompt) + request.max_tokens > self.context:
            raise InputError("more tokens than the context")
        with self._changed:
            if len(self._waiting) + n > self.most_queued:
                raise QueueFull("the queue is full")
            self.requests.append(request)
            made = [_Running(self, request, request.seed + i) for i in range(n)]
            self._waiting.extend(made)
            self._changed.notify_all()
        return [one.generation for one in made]

    def score(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
        return [[score_of(token, top, self.vocab_size) for token in sequence[1:]] for sequence in sequences]

    def status(self) -> EngineStatus:
        with self._changed:
            done, cached = dict(self.finished), 0
            return EngineStatus(self.slots, len(self._active), len(self._waiting), self.prompt_tokens, cached,
                                self.generated, done, 0, 0)  # fmt: skip

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self._going and (self._waiting or self._active)))
                if self._closed:
                    break
                while self._waiting and len(self._active) < self.slots:
                    self._active.append(self._waiting.popleft())
                active = list(self._active)
            self.steps += 1
            ended = [one for one in active if one.step()]
            with self._changed:
                self._active = [one for one in self._active if one not in ended]
                self.finished.update(one.finish for one in ended)
        for one in [*self._active, *self._waiting]:
            one.generation.put(Update((), finish=Finish.CANCELLED))


class _Running:
    """One generation."""

    def __init__(self, engine: ScriptedEngine, request: GenerationRequest, seed: int):
        import dataclasses

        own = dataclasses.replace(request, seed=seed)
        self.engine, self.generation, self.finish = engine, Generation(own), Finish.STOP
        self.request, self.written = own, []
        self.script = iter(engine.script(own))
        self.draw = np.random.default_rng(seed)
        self.cached = self._cached()

    def step(self) -> bool:
        """Writes a token; whether it was the last."""
        if self.generation.cancelled:
            return self._end((), Finish.CANCELLED)
        token = self._next()
        self.written.append(token)
        self.engine.generated += 1
        if token in self.request.stop_ids or self._holds_stop_text():
            return self._end((token,), Finish.STOP)
        if len(self.written) >= self.request.max_tokens:
            return self._end((token,), Finish.LENGTH)
        self.generation.put(Update((token,), self._scores((token,)), None, self._first()))
        return False

    def _next(self) -> int:
        token = next(self.script, self.engine.tokenizer.controls["<|eot|>"])
        mask = self.request.allowed.mask(self.written) if self.request.allowed else None
        if mask is None or mask[token]:
            return token
        return int(self.draw.choice(np.flatnonzero(mask)))

    def _holds_stop_text(self) -> bool:
        text = self.engine.tokenizer.decode(self.written) if self.request.stop_texts else ""
        return any(stop in text for stop in self.request.stop_texts)

    def _end(self, tokens: tuple[int, ...], finish: Finish) -> bool:
        self.finish = finish
        if self.request.session is not None:
            self.engine.sessions[self.request.realm, self.request.session] = [*self.request.prompt, *self.written]
        self.generation.put(Update(tokens, self._scores(tokens), finish, self._first() if tokens else 0))
        return True

    def _first(self) -> int:
        return self.cached if len(self.written) == 1 else 0

    def _scores(self, tokens: tuple[int, ...]) -> tuple[TokenScore, ...]:
        if self.request.log_probs is None:
            return ()
        return tuple(score_of(token, self.request.log_probs, self.engine.vocab_size) for token in tokens)

    def _cached(self) -> int:
        """Tokens at the beginning of the prompt that its session holds; the last token is always computed."""
        before = self.engine.sessions.get((self.request.realm, self.request.session or ""), [])
        pairs = zip(before, self.request.prompt[:-1], strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(self.request.prompt) - 1))
        self.engine.prompt_tokens += len(self.request.prompt) - same
        return same


def score_of(token: int, top: int, vocab_size: int) -> TokenScore:
    """A made-up score, which depends on the token alone; most likely are ids 0, 1, 2, ..., less so than -0.1 each."""
    return TokenScore(token, -1.0 - token % 7, tuple((i, -0.1 * (i + 1)) for i in range(min(top, vocab_size))))
