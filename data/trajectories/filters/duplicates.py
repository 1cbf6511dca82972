"""Runs that say what an earlier run said: exactly, by a hash, or nearly, by MinHash over word shingles."""

import hashlib
from collections.abc import Iterator
from typing import Any

from data.trajectories.filters.report import place_of
from data.trajectories.filters.rules import call_key
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Role, values

PERMUTATIONS = 256
"""The standard error of an estimated similarity J is sqrt(J (1 - J) / 256), at most 0.032."""


def content_hash(run: Trajectory) -> str:
    """SHA-256 of what is said, thought, called and answered, and of the tools. Ids, the order of arguments, weights,
    rewards, provenance and unknown fields are left out."""
    tools = [[tool.name, tool.description, tool.parameters] for tool in run.tools]
    written = values.write([tools, [_said(step) for step in run.steps]])
    return hashlib.sha256(written.encode()).hexdigest()


def _said(step: Step) -> list[Any]:
    message = step.message
    parts = [part if isinstance(part, str) else list(part.ids) for part in message.parts]
    text = [message.text] if all(isinstance(part, str) for part in message.parts) else parts
    return [int(message.role), text, message.thought, [call_key(call) for call in message.calls], step.error]


def shingles(run: Trajectory, words: int) -> set[str]:
    """Every `words` consecutive words of a run, the policy and the tools left out; of a shorter run, all its words."""
    found = list(_words(run))
    return {" ".join(found[i : i + words]) for i in range(max(1, len(found) - words + 1))}


def _words(run: Trajectory) -> Iterator[str]:
    for step in run.steps:
        message = step.message
        if message.role is Role.SYSTEM:
            continue
        yield f"\n{message.role.header}"  # no word of a text begins with a line break
        yield from message.thought.split()
        yield from message.text.split()
        for call in message.calls:
            yield from call_key(call).split()


class ExactDuplicates:
    """Remembers 32 bytes and a name per run."""

    def __init__(self):
        self._seen: dict[bytes, str] = {}

    def reason(self, run: Trajectory) -> str | None:
        """The earlier run that says the same; None: there is none, and this one is remembered."""
        key = bytes.fromhex(content_hash(run))
        if (earlier := self._seen.get(key)) is not None:
            return f"says what {earlier:.200} says"
        self._seen[key] = place_of(run).run
        return None


class NearDuplicates:
    """An index of the runs that were kept: a signature of `PERMUTATIONS` 32-bit numbers each."""

    def __init__(self, threshold: float, words: int):
        self._datasketch = _datasketch()
        self._threshold, self._words = threshold, words
        # More bands than are best on average: what a band finds by chance is looked at again below.
        weights = (0.1, 0.9)
        at = min(max(threshold, 0.05), 0.99)
        self._index = self._datasketch.MinHashLSH(threshold=at, num_perm=PERMUTATIONS, weights=weights)
        self._signatures: list[tuple[str, Any]] = []

    def reason(self, run: Trajectory) -> str | None:
        """The earlier run that is most like it; None: none is like enough, and this one is remembered."""
        signature = self._datasketch.MinHash(num_perm=PERMUTATIONS, seed=1)
        signature.update_batch([shingle.encode() for shingle in shingles(run, self._words)])
        near = sorted(self._index.query(signature))
        similar = [(signature.jaccard(self._signatures[i][1]), -i) for i in near]
        if similar and (best := max(similar))[0] >= self._threshold:
            return f"similarity {best[0]:.2f} with {self._signatures[-best[1]][0]:.200}"
        self._index.insert(len(self._signatures), signature)
        self._signatures.append((place_of(run).run, signature))
        return None


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise InputError("filter.near_duplicates needs the package datasketch: pip install 'maverick-jax[dedup]', or "
                         "set it to null") from None  # fmt: skip
    return datasketch
