"""The engine: one thread owns the devices and computes prompts in pieces, and steps of all slots in between."""

import collections
import dataclasses
import logging
import threading
from collections.abc import Sequence

import numpy as np

from maverick_jax.errors import InputError, QueueFull
from maverick_jax.inference.engine import checks
from maverick_jax.inference.engine.compilations import compilations_here
from maverick_jax.inference.engine.devices import EngineDevices, Work
from maverick_jax.inference.engine.forward import Unrolled
from maverick_jax.inference.engine.jobs import Answer, Job, Scoring, SharedPrompt
from maverick_jax.inference.engine.kept import KeptText, KeptTexts, Reach
from maverick_jax.inference.engine.latents import end_of_piece, resumable, undrawn
from maverick_jax.inference.engine.marks import counted, require_marks
from maverick_jax.inference.engine.pictures import Pictures
from maverick_jax.inference.engine.programs import Snapshot
from maverick_jax.inference.engine.requests import (
    Engine,
    EngineStatus,
    Finish,
    Generation,
    GenerationRequest,
    TokenScore,
)
from maverick_jax.model.transformer import Maverick
from maverick_jax.text import Tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """Sizes of an engine. All memory is taken when it starts."""

    slots: int = 8
    """Texts that are continued at the same time."""
    context: int = 2048
    """Most tokens of prompt and answer together."""
    piece: int | None = None
    """Tokens of a prompt that are computed between two steps; null: a chunk of local attention, and at most 2,048."""
    steps: int = 4
    """Steps that are computed before tokens are reported, while no request waits and none has a filter."""
    queue: int = 64
    """Generations that wait for a slot; more are refused."""
    keep_bytes: int = 1 << 28
    """Most bytes of keys and values that are kept of texts that have ended, on each device group; 0: none."""
    lazy: bool = False
    """Whether programs are compiled when they are first needed, for a few requests; by default, all at the start."""

    def __post_init__(self):
        if self.keep_bytes < 0:
            raise InputError(f"keep_bytes: {self.keep_bytes}; expected 0 (nothing is kept) or more")
        for name in ("slots", "context", "piece", "steps", "queue"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}: {value}; expected 1 or more")

    def piece_of(self, chunk: int | None) -> int:
        """Tokens of a piece for a model with this attention chunk."""
        return min(self.piece or 2048, chunk or self.context, self.context)


class SlotEngine(Engine):
    """An engine with a fixed number of slots. A request waits for a slot; its prompt is computed piece by piece, and
    between two pieces all slots advance by a token. Nothing is compiled after the constructor, unless it is lazy."""

    def __init__(
        self,
        model: Maverick | Unrolled,
        tokenizer: Tokenizer | None = None,
        settings: EngineSettings | None = None,
    ):
        """Compiles all programs and starts the thread. The layers of a `Maverick` are copied; those that
        `maverick_jax.pretrained.load_layers` read are used as they are. Raises InputError for a model or mesh that an
        engine does not run, and for a tokenizer with more ids than the model."""
        self.settings = settings = settings or EngineSettings()
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            sizes = f"{tokenizer.vocab_size} ids, the model {model.config.vocab_size}"
            raise InputError(f"the tokenizer has {sizes}; expected the tokenizer of this model")
        self.vocab_size, self.context, self.tokenizer = model.config.vocab_size, settings.context, tokenizer
        self._config, self._chunk = model.config, model.config.attention_chunk_size
        self._piece = settings.piece_of(self._chunk)
        self._device = EngineDevices(
            model, settings.slots, settings.context, self._piece, settings.steps, settings.lazy
        )
        window = model.config.local_attention == "sliding_window"
        self._kept: KeptTexts[Snapshot] = KeptTexts(settings.keep_bytes, Reach(self._chunk, window))
        self._lock = threading.Condition()
        self._waiting: collections.deque[Answer] = collections.deque()
        self._to_score: collections.deque[Scoring] = collections.deque()
        self._closed, self._failure = False, None
        self._jobs: dict[int, Job] = {}
        self._oldest_first = False
        self._counts = collections.Counter()
        self._finished = dict.fromkeys(Finish, 0)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # ---- called from any thread ------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest, n: int = 1) -> list[Generation]:
        checks.require_request(request, self.vocab_size, self.context, self.tokenizer is not None)
        if n < 1:
            raise InputError(f"n: {n}; expected 1 or more")
        require_marks(self._config, request.marks, len(request.prompt))
        request = undrawn(request, self._config)
        requests = [dataclasses.replace(request, seed=request.seed + i) for i in range(n)]
        prompt = SharedPrompt() if n > 1 else None
        pictures = None
        if request.tiles is not None:
            pictures = Pictures(self._config, np.asarray(request.prompt), np.asarray(request.tiles))
        answers = [Answer(Generation(r), self.tokenizer, prompt, pictures) for r in requests]
        with self._lock:
            self._require_open()
            if len(self._waiting) + n > self.settings.queue:
                raise QueueFull(f"{len(self._waiting)} generations wait, and the queue holds {self.settings.queue}")
            self._waiting.extend(answers)
            self._lock.notify_all()
        return [answer.generation for answer in answers]

    def score(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
        checks.require_top(top, "top")
        for i, sequence in enumerate(sequences):
            checks.require_tokens(sequence, self.vocab_size, f"sequence {i}")
            checks.require_no_latents(sequence, self._config, f"sequence {i}: an engine that scores")
            if len(sequence) > self.context:
                raise InputError(
                    f"sequence {i}: {len(sequence):,} tokens; expected at most {self.context:,}, the context"
                )
        jobs = [Scoring(np.asarray(sequence, np.int32), top) for sequence in sequences]
        with self._lock:
            self._require_open()
            self._to_score.extend(job for job in jobs if not job.done.done())
            self._lock.notify_all()
        return [job.done.result() for job in jobs]

    def load(self, model: Maverick) -> None:
        """Goes on with a copy of the weights of `model`, which has the shapes and the mesh of the engine's model.
        Nothing is compiled, and no kept text stays. Raises InputError for other shapes, and while requests are under
        way."""
        with self._lock:
            self._require_open()
            if self._jobs or self._waiting or self._to_score:
                raise InputError("requests are under way; expected weights to be changed between requests")
            self._device.load(model)
            self._kept.clear()

    def status(self) -> EngineStatus:
        with self._lock:
            return EngineStatus(
                slots=self.settings.slots,
                active=len(self._jobs),
                queued=len(self._waiting),
                prompt_tokens=self._counts["prompt"],
                cached_tokens=self._counts["cached"],
                generated_tokens=self._counts["generated"],
                finished=dict(self._finished),
                compilations=self._counts["compilations"],
                cache_bytes=self._kept.bytes,
            )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._thread.join()
        self.__dict__.pop("_device", None)

    def _require_open(self) -> None:
        if self._failure is not None:
            raise RuntimeError("the engine's thread has failed") from self._failure
        if self._closed:
            raise InputError("the engine is closed")

    # ---- the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._device.entered():
                while self._wait():
                    self._turn()
        except BaseException as error:  # whoever waits must learn of it
            log.exception("the engine's thread failed")
            with self._lock:
                self._failure = error
            self._end_all(error)
        else:
            self._end_all(None)

    def _wait(self) -> bool:
        """Waits until there is work; False at the end."""
        with self._lock:
            while not (self._closed or self._waiting or self._to_score or self._jobs):
                self._lock.wait()
            return not self._closed

    def _end_all(self, error: BaseException | None) -> None:
        with self._lock:
            jobs = [*self._jobs.values(), *self._waiting, *self._to_score]
            self._jobs, self._closed = {}, True
            self._waiting.clear()
            self._to_score.clear()
        for job in jobs:
            job.abort(error)

    def _turn(self) -> None:
        """One piece of a prompt per group of devices, and one dispatch of steps."""
        self._drop_cancelled()
        self._admit()
        self._compute_piece()
        self._step()
        with self._lock:
            self._counts["compilations"] = compilations_here()

    def _drop_cancelled(self) -> None:
        ended = [job for job in self._jobs.values() if isinstance(job, Answer) and job.generation.cancelled]
        if running := [job.slot for job in ended if job.begun]:
            self._device.stop(running)
        for job in ended:
            self._finish(job, Finish.CANCELLED)
        with self._lock:
            dropped = [job for job in self._waiting if job.generation.cancelled]
            for job in dropped:
                self._waiting.remove(job)
        for job in dropped:
            self._finish(job, Finish.CANCELLED)

    def _admit(self) -> None:
        """Gives free slots to those who wait. Scores fill the slots that no generation wants, and one at a time go on
        if all are wanted."""
        admitted = []
        with self._lock:
            free = [slot for slot in range(self.settings.slots) if slot not in self._jobs]
            while free and (self._waiting or self._to_score):
                scoring = any(isinstance(job, Scoring) for job in self._jobs.values())
                queue = self._to_score if self._to_score and not (self._waiting and scoring) else self._waiting
                job = queue.popleft()
                job.slot = self._emptiest(free)
                free.remove(job.slot)
                self._jobs[job.slot] = job
                admitted.append(job)
        for job in admitted:
            if isinstance(job, Answer):
                self._resume(job)

    def _resume(self, job: Answer) -> None:
        """Begins with what is kept of a text that begins alike."""
        if job.shared and (snapshot := job.shared.snapshot):
            self._restore(job, snapshot, job.total, job.total)
        elif found := self._kept.find(job.generation.request.realm, resumable(job.identity, self._config)):
            text, count = found
            self._restore(job, text.snapshot, count, len(text.identity))

    def _restore(self, job: Answer, snapshot: Snapshot, count: int, length: int) -> None:
        """Gives `job` the first `count` tokens of a snapshot of `length` tokens."""
        self._device.restore(job.slot, snapshot, count, length, job.marks)
        job.position = job.cached = count
        self._counts["cached"] += count
        if job.computed:
            self._when_computed(job)

    def _emptiest(self, free: list[int]) -> int:
        """A free slot of the group that has the most of them."""
        groups = collections.Counter(map(self._device.group_of, free))
        return max(free, key=lambda slot: (groups[self._device.group_of(slot)], -slot))

    def _compute_piece(self) -> None:
        """The next piece of a text per group. The text that waits longest and the one with the fewest tokens left take
        turns, so that neither a long prompt nor a newcomer waits for all pieces of the other."""
        left = [job for job in self._jobs.values() if not job.computed and job.leads()]
        if not left:
            return
        self._oldest_first = not self._oldest_first
        order = (lambda job: job.number) if self._oldest_first else (lambda job: (job.left, job.number))
        left.sort(key=order)
        if isinstance(left[0], Answer) and (pictures := left[0].pictures) and pictures.left:
            pictures.add(self._device.encode(pictures.next_pixels(self._device.groups)))
            return
        left = [job for job in left if not (isinstance(job, Answer) and job.pictures and job.pictures.left)]
        kind, chosen = type(left[0]), {}
        for job in left:
            if type(job) is kind:
                chosen.setdefault(self._device.group_of(job.slot), job)
        jobs = list(chosen.values())
        work = [self._work_of(job) for job in jobs]
        if kind is Scoring:
            for job, scores in zip(jobs, self._device.score(work), strict=True):
                job.add(scores)
        else:
            self._device.prefill(work)
        for job, piece in zip(jobs, work, strict=True):
            job.position += len(piece.tokens)
            self._counts["prompt"] += len(piece.tokens)
            if job.computed:
                self._when_computed(job)

    def _work_of(self, job: Job) -> Work:
        """The longest piece that ends in the chunk of local attention in which it begins."""
        start, most = job.position, self._piece
        if self._chunk is not None:
            most = min(most, self._chunk - start % self._chunk)
        stop = min(start + most, job.total)
        if (latent := self._config.latent) is not None:
            stop = end_of_piece(job.tokens, start, stop, latent.token_id)
        labels, pictures = None, None
        if isinstance(job, Scoring):
            labels = job.tokens[start + 1 : stop + 1]
        elif isinstance(job, Answer) and job.pictures is not None:
            pictures = job.pictures.rows(start, stop)
        found = Work(job.slot, start, job.tokens[start:stop], labels, pictures=pictures)
        if isinstance(job, Scoring):
            return found
        return found._replace(marks=job.marks[start:stop], seen=counted(self._config, job.marks, start))

    def _when_computed(self, job: Job) -> None:
        if isinstance(job, Scoring):
            self._release(job)
            job.finish()
            return
        if job.shared and job.shared.snapshot is None:
            job.shared.snapshot = self._device.snapshot(job.slot, job.total)
            for other in list(self._jobs.values()):
                if isinstance(other, Answer) and other.shared is job.shared and not other.computed:
                    self._restore(other, job.shared.snapshot, job.total, job.total)
        if job.generation.request.max_tokens == 0:
            self._finish(job, Finish.LENGTH)
        else:
            self._device.begin(job.slot, job.generation.request, job.generation.request.seed)
            job.begun = True

    def _step(self) -> None:
        running = [job for job in self._jobs.values() if isinstance(job, Answer) and job.begun]
        running = [job for job in running if self._restrict(job)]
        if not running:
            return
        busy = len(running) < len(self._jobs) or bool(self._waiting) or any(job.filtered for job in running)
        count = 1 if busy else self.settings.steps
        steps = self._device.decode(count, scored=any(job.scored for job in running))
        ended = []
        for job in running:
            finish = job.add(steps)
            self._counts["generated"] += job.new
            if finish is not None:
                ended.append((job, finish))
        if early := [job.slot for job, _ in ended if job.goes_on]:
            self._device.stop(early)
        for job, finish in ended:
            self._finish(job, finish)

    def _restrict(self, job: Answer) -> bool:
        """Sets which tokens may come next; False if that failed, which ends the generation."""
        if not job.filtered:
            return True
        try:
            allowed = job.allowed_next(self.vocab_size)
        except Exception as error:  # of the filter, which is the request's; other requests go on
            self._device.stop([job.slot])
            job.ended()
            self._release(job)
            job.abort(error)
            return False
        if allowed is not None or job.restricted:
            self._device.restrict(job.slot, job.generation.request.sampling.logit_bias, allowed)
            job.restricted = allowed is not None
        return True

    def _release(self, job: Job) -> None:
        with self._lock:
            self._jobs.pop(job.slot, None)

    def _keep(self, job: Answer) -> None:
        """Keeps a text that has ended, if there is room."""
        identity, request = job.identity_so_far(), job.generation.request
        size = self._device.snapshot_bytes(len(identity))
        if self._kept.make_room(request.realm, request.session, identity, size):
            snapshot = self._device.snapshot(job.slot, len(identity))
            self._kept.add(KeptText(request.realm, request.session, identity, snapshot, size))

    def _finish(self, job: Answer, finish: Finish) -> None:
        if job.computed:
            self._keep(job)
        job.ended()
        self._release(job)
        with self._lock:
            self._finished[finish] += 1
        job.generation.put(job.update(finish))
