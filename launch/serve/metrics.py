"""Counters of the server and of its engine, in Prometheus' text format."""

import bisect
import collections
import threading
from collections.abc import Mapping

from maverick_jax.inference.engine.requests import EngineStatus

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ServerMetrics:
    """What the server counts itself."""

    def __init__(self):
        self._lock = threading.Lock()
        self._answered: collections.Counter[tuple[str, int]] = collections.Counter()
        self._held: collections.Counter[str] = collections.Counter()
        self._refused: collections.Counter[str] = collections.Counter()
        self._first = [0] * (len(FIRST_TOKEN_SECONDS) + 1)
        self._first_sum = 0.0
        self._malformed = self._cancelled = self.open_requests = 0

    def count_answer(self, route: str, status: int) -> None:
        with self._lock:
            self._answered[route, status] += 1

    def count_refused(self, reason: str) -> None:
        with self._lock:
            self._refused[reason] += 1

    def count_malformed(self) -> None:
        """A reply with calls that could not be parsed."""
        with self._lock:
            self._malformed += 1

    def count_held(self, ruling: str) -> None:
        """A reply whose calls the gate held back."""
        with self._lock:
            self._held[ruling] += 1

    def count_cancelled(self, generations: int) -> None:
        with self._lock:
            self._cancelled += generations

    def observe_first_token(self, seconds: float) -> None:
        with self._lock:
            self._first[bisect.bisect_left(FIRST_TOKEN_SECONDS, seconds)] += 1
            self._first_sum += seconds

    def text(self, status: EngineStatus) -> str:
        with self._lock:
            answered = {f'route="{route}",status="{code}"': n for (route, code), n in sorted(self._answered.items())}
            refused = {f'reason="{reason}"': n for reason, n in sorted(self._refused.items())}
            held = {f'ruling="{ruling}"': n for ruling, n in sorted(self._held.items())}
            lines = [
                *_metric("maverick_answers_total", "counter", "Answered requests.", answered),
                *_metric("maverick_refused_total", "counter", "Requests refused for want of room.", refused),
                *_metric("maverick_malformed_replies_total", "counter", "Replies with calls that could not be parsed.",
                         {"": self._malformed}),
                *_metric("maverick_held_replies_total", "counter", "Replies whose calls the gate held back.", held),
                *_metric("maverick_abandoned_generations_total", "counter", "Generations ended because nobody waited.",
                         {"": self._cancelled}),
                *_metric("maverick_open_requests", "gauge", "Requests at work or waiting.", {"": self.open_requests}),
                *self._histogram(),
            ]  # fmt: skip
        return "\n".join([*lines, *_engine(status)]) + "\n"

    def _histogram(self) -> list[str]:
        name, total, lines = "maverick_first_token_seconds", 0, []
        for limit, count in zip([*map(str, FIRST_TOKEN_SECONDS), "+Inf"], self._first, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{limit}"}} {total}')
        head = [f"# HELP {name} Time from a request's submission to its first token.", f"# TYPE {name} histogram"]
        return [*head, *lines, f"{name}_sum {self._first_sum}", f"{name}_count {total}"]


def _metric(name: str, kind: str, help_text: str, values: Mapping[str, float]) -> list[str]:
    lines = [f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in values.items()]
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *lines]


def _engine(status: EngineStatus) -> list[str]:
    gauges = {
        "slots": (status.slots, "Generations that run at one time."),
        "active_slots": (status.active, "Slots in use."),
        "queued_requests": (status.queued, "Requests that wait for a slot."),
        "cache_bytes": (status.cache_bytes, "Bytes of keys and values kept for sessions and prefixes."),
    }
    counters = {
        "prompt_tokens_total": (status.prompt_tokens, "Tokens of prompts computed."),
        "cached_tokens_total": (status.cached_tokens, "Tokens of prompts that were not computed again."),
        "generated_tokens_total": (status.generated_tokens, "Tokens written."),
        "compilations_total": (status.compilations, "Programs compiled after the start."),
    }
    lines = [line for name, (v, text) in gauges.items() for line in _metric(f"maverick_{name}", "gauge", text, {"": v})]
    for name, (value, text) in counters.items():
        lines += _metric(f"maverick_{name}", "counter", text, {"": value})
    ends = {f'finish="{finish.value}"': n for finish, n in status.finished.items()}
    return [*lines, *_metric("maverick_generations_total", "counter", "Generations that ended.", ends)]
