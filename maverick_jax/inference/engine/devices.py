"""What an engine has on its devices: model, slots and the compiled programs, behind methods that take NumPy arrays."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.inference.engine import programs
from maverick_jax.inference.engine.beginnings import beginning_of, bias_of
from maverick_jax.inference.engine.forward import PromptPieces, Unrolled, empty_cache, encoded
from maverick_jax.inference.engine.lengths import SMALLEST_BUCKET, buckets, device_groups, mesh_of
from maverick_jax.inference.engine.marks import counted, num_groups
from maverick_jax.inference.engine.programs import Snapshot, Steps
from maverick_jax.inference.engine.requests import GenerationRequest
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.token_scores import ScoredTokens


class Work(NamedTuple):
    """Tokens of one slot's text to compute."""

    slot: int
    start: int
    """Position of the first token."""
    tokens: np.ndarray
    """int32[n]"""
    labels: np.ndarray | None = None
    """int32[n]: the token after each, whose log-probability is wanted."""
    marks: np.ndarray | None = None
    """uint8[n]: what the tokens are to reasoning heads; None: nothing."""
    seen: np.ndarray | None = None
    """int32[G]: how many earlier tokens each group of reasoning heads sees; None: none."""
    pictures: tuple[np.ndarray, np.ndarray] | None = None
    """Which of the tokens show pictures, int[m], and their features [m, D]."""


class EngineProgram:
    """A program that is compiled at once or, if it is `lazy`, when it first runs."""

    def __init__(self, program: Callable, inputs: tuple, given_away: tuple[int, ...], lazy: bool):
        self._jitted = jax.jit(program, donate_argnums=given_away)
        self._compiled = None if lazy else self._jitted.lower(*inputs).compile()

    def __call__(self, *inputs: Any) -> Any:
        if self._compiled is None:
            self._compiled = self._jitted.lower(*inputs).compile()
        return self._compiled(*inputs)


class EngineDevices:
    """The device side of an engine. One thread may use it at a time, under the model's mesh (`entered`)."""

    def __init__(self, model: Maverick | Unrolled, slots: int, context: int, piece: int, steps: int, lazy: bool):
        """Compiles all programs; if `lazy`, each when it is first needed. Raises InputError for a mesh that an engine
        does not run on."""
        rest = model.rest if isinstance(model, Unrolled) else model
        self.mesh, self.config, self.rules, self.groups = mesh_of(rest), rest.config, rest.rules, device_groups(rest)
        if slots % self.groups:
            raise InputError(
                f"slots: {slots}; expected a multiple of {self.groups}, the groups of devices that divide sequences"
            )
        self.slots, self.context, self.steps, self._lazy = slots, context, steps, lazy
        self.pieces, self.kept_lengths = buckets(min(SMALLEST_BUCKET, piece), piece), buckets(256, context)
        alone = [1] if model.config.latent and piece > 1 else []  # a latent thought is a piece of its own
        self.prompt_pieces = [*alone, *self.pieces]
        self._copied = jax.jit(lambda model: jax.tree.map(jnp.copy, Unrolled.of(model)))
        with self.entered():
            unrolled = model if isinstance(model, Unrolled) else Unrolled.of(model)
            self._weights, self._tree = jax.tree.flatten(unrolled)
            self._cache = jax.jit(lambda: empty_cache(unrolled, slots, context))()
            self._slots = jax.jit(lambda: programs.empty_slots(slots, self.config, self.rules))()
            self._compile()

    def entered(self):
        """The context in which arrays are made and programs run."""
        return jax.set_mesh(self.mesh)

    def load(self, model: Maverick) -> None:
        """Copies the weights of `model`, and waits for it. Raises InputError unless its layers and shapes are those of
        the engine's model."""
        with self.entered():
            weights, tree = jax.tree.flatten(self._copied(model))
        if tree != self._tree or [jax.typeof(x) for x in weights] != [jax.typeof(x) for x in self._weights]:
            raise InputError("the weights are those of another model; expected the engine's layers and shapes")
        self._weights = jax.block_until_ready(weights)

    # ---- compilation -----------------------------------------------------------------------------------------------

    def _compile(self) -> None:
        state, number = (self._cache, self._slots), np.int32(0)
        piece = lambda length: self._piece([], length)[0]
        labels = lambda length: np.zeros((self.groups, length), np.int32)
        of_model = functools.partial(self._compiled, state=state)
        self._prefill = {n: of_model(programs.prefill, piece(n)) for n in self.prompt_pieces}
        if (vision := self.config.vision) is not None:
            shown = lambda n: self._shown(piece(n), [])
            self._prefill_shown = {n: of_model(programs.prefill, shown(n)) for n in self.prompt_pieces}
            tiles = np.zeros((self.groups, vision.num_channels, vision.image_size, vision.image_size), np.float32)
            self._encode = self._compiled(encoded, tiles, state=())
        self._score = {n: self._compiled(programs.score, piece(n), labels(n), state=state[:1]) for n in self.pieces}
        self._decode = {k: of_model(functools.partial(programs.decode, count=k)) for k in sorted({1, self.steps})}
        plain = functools.partial(self._without_model, state=self._slots)
        self._begin = plain(programs.begin, number, beginning_of(GenerationRequest([0], 1), 0, self.config.vocab_size))
        self._stop = plain(programs.stop, np.zeros(self.slots, bool))
        self._restrict = plain(programs.restrict, number, np.zeros(self.config.vocab_size, np.float32))
        self._snapshot, self._restore, self._snapshot_bytes = {}, {}, {}
        for n in self.kept_lengths:
            take = functools.partial(programs.snapshot, length=n, rules=self.rules)
            self._snapshot[n] = EngineProgram(take, (*state, number), (), self._lazy)
            on_mesh = lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=jax.NamedSharding(self.mesh, x.sharding.spec)
            )
            shape = jax.tree.map(on_mesh, jax.eval_shape(take, *state, number))
            self._snapshot_bytes[n] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shape))
            put = functools.partial(programs.restore, rules=self.rules)
            seen = counted(self.config, np.zeros(0, np.uint8), 0) if num_groups(self.config) else None
            self._restore[n] = EngineProgram(put, (*state, number, shape, number, seen), (0, 1), self._lazy)

    def _compiled(self, program: Callable, *inputs: Any, state: tuple) -> EngineProgram:
        """`program(model, *state, *inputs)` as a function of the weights' leaves; the state is given away."""
        with_leaves = lambda weights, *rest: program(self._tree.unflatten(weights), *rest)
        donated = tuple(range(1, 1 + len(state)))
        return EngineProgram(with_leaves, (self._weights, *state, *inputs), donated, self._lazy)

    def _without_model(self, program: Callable, *inputs: Any, state: Any) -> EngineProgram:
        bound = functools.partial(program, rules=self.rules)
        return EngineProgram(bound, (state, *inputs), (0,), self._lazy)

    # ---- what the engine's thread calls ----------------------------------------------------------------------------

    def prefill(self, work: Sequence[Work]) -> None:
        """Computes pieces of prompts, at most one per group of devices."""
        piece, _ = self._piece(work)
        program = self._prefill
        if any(w.pictures for w in work):
            piece, program = self._shown(piece, work), self._prefill_shown
        self._cache, self._slots = program[piece.tokens.shape[1]](self._weights, self._cache, self._slots, piece)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Features [N, P, D] of as many tiles float32[N, C, S, S] as there are groups of devices."""
        return np.asarray(self._encode(self._weights, pixels))

    def score(self, work: Sequence[Work]) -> list[ScoredTokens]:
        """As `prefill`, for texts of which log-probabilities are wanted: [n] of each piece."""
        piece, labels = self._piece(work)
        self._cache, found = self._score[labels.shape[1]](self._weights, self._cache, piece, labels)
        found = jax.device_get(found)
        cut = lambda w: jax.tree.map(lambda x: x[self.group_of(w.slot), : len(w.tokens)], found)
        return [cut(w) for w in work]

    def decode(self, count: int, scored: bool) -> Steps:
        """`count` steps (1 or `steps`) of all slots, as NumPy arrays; the scores only if they are wanted."""
        self._cache, self._slots, found = self._decode[count](self._weights, self._cache, self._slots)
        return jax.device_get(found if scored else found._replace(scores=None))

    def begin(self, slot: int, request: GenerationRequest, seed: int) -> None:
        """The answer of `slot` begins with the next step."""
        self._slots = self._begin(self._slots, np.int32(slot), beginning_of(request, seed, self.config.vocab_size))

    def stop(self, slots: Sequence[int]) -> None:
        ended = np.zeros(self.slots, bool)
        ended[list(slots)] = True
        self._slots = self._stop(self._slots, ended)

    def restrict(self, slot: int, logit_bias: Mapping[int, float], allowed: np.ndarray | None) -> None:
        """The next token of `slot` is one of `allowed` bool[V]; None: any."""
        bias = bias_of(logit_bias, self.config.vocab_size)
        if allowed is not None:
            bias[~allowed] = -np.inf
        self._slots = self._restrict(self._slots, np.int32(slot), bias)

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """A copy of the text of `slot`, which has `length` tokens."""
        return self._snapshot[self._bucket(length)](self._cache, self._slots, np.int32(slot))

    def snapshot_bytes(self, length: int) -> int:
        """Bytes of a snapshot of `length` tokens."""
        return self._snapshot_bytes[self._bucket(length)]

    def _bucket(self, length: int) -> int:
        return next(n for n in self.kept_lengths if n >= length)

    def restore(self, slot: int, kept: Snapshot, length: int, taken_of: int, marks: np.ndarray) -> None:
        """`slot` with the first `length` tokens of a snapshot that was taken of `taken_of` tokens. `marks` uint8[n]:
        those of the text."""
        program = self._restore[self._bucket(taken_of)]
        seen = counted(self.config, marks, length) if num_groups(self.config) else None
        self._cache, self._slots = program(self._cache, self._slots, np.int32(slot), kept, np.int32(length), seen)

    def group_of(self, slot: int) -> int:
        """The group of devices along the batch axes that holds `slot`."""
        return slot // (self.slots // self.groups)

    # ---- inputs ----------------------------------------------------------------------------------------------------

    def _piece(self, work: Sequence[Work], length: int | None = None) -> tuple[PromptPieces, np.ndarray]:
        lengths = self.prompt_pieces if all(w.labels is None for w in work) else self.pieces
        T = length or next(n for n in lengths if n >= max(len(w.tokens) for w in work))
        of_group = self.slots // self.groups
        tokens, labels = (np.zeros((self.groups, T), np.int32) for _ in range(2))
        start, count = (np.zeros(self.groups, np.int32) for _ in range(2))
        slot = np.full(self.groups, of_group, np.int32)
        for w in work:
            g, n = self.group_of(w.slot), len(w.tokens)
            tokens[g, :n], start[g], count[g], slot[g] = w.tokens, w.start, n, w.slot % of_group
            if w.labels is not None:
                labels[g, :n] = w.labels
        return self._marked(PromptPieces(tokens, start, count, slot), work), labels

    def _marked(self, piece: PromptPieces, work: Sequence[Work]) -> PromptPieces:
        """The piece with its marks, if the model has heads for them."""
        if not (groups := num_groups(self.config)):
            return piece
        marks, seen = np.zeros(piece.tokens.shape, np.uint8), np.zeros((self.groups, groups), np.int32)
        for w in work:
            if w.marks is not None and w.seen is not None:
                marks[self.group_of(w.slot), : len(w.marks)], seen[self.group_of(w.slot)] = w.marks, w.seen
        return piece._replace(marks=marks, seen=seen)

    def _shown(self, piece: PromptPieces, work: Sequence[Work]) -> PromptPieces:
        """The piece with its pictures."""
        shown = np.zeros(piece.tokens.shape, bool)
        features = np.zeros((*shown.shape, self.config.hidden_size), self.config.compute_dtype)
        for w in work:
            if w.pictures is not None:
                places, rows = w.pictures
                shown[self.group_of(w.slot), places] = True
                features[self.group_of(w.slot), places] = rows
        return piece._replace(shown=shown, features=features)
