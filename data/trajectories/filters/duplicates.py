"""Find duplicates of earlier trajectories: exact ones by a hash, near ones by MinHash over word shingles."""

import hashlib
from collections.abc import Iterator
from typing import Any

from data.trajectories.filters.report import location_of
from data.trajectories.filters.rules import call_key
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Role, values

PERMUTATIONS = 256
"""The standard error of an estimated similarity J is sqrt(J (1 - J) / 256), at most 0.032."""


def content_hash(trajectory: Trajectory) -> str:
    """SHA-256 of texts, thoughts, calls, results and tools. Ids, the order of arguments, weights, rewards, provenance
    and unknown fields are ignored."""
    tools = [[tool.name, tool.description, tool.parameters] for tool in trajectory.tools]
    written = values.write([tools, [_content(step) for step in trajectory.steps]])
    return hashlib.sha256(written.encode()).hexdigest()


def _content(step: Step) -> list[Any]:
    message = step.message
    parts = [part if isinstance(part, str) else list(part.ids) for part in message.parts]
    text = [message.text] if all(isinstance(part, str) for part in message.parts) else parts
    return [int(message.role), text, message.thought, [call_key(call) for call in message.calls], step.error]


def shingles(trajectory: Trajectory, words: int) -> set[str]:
    """Every `words` consecutive words of a trajectory without its system message and tools; of a shorter one, all its
    words as one shingle."""
    found = list(_words(trajectory))
    return {" ".join(found[i : i + words]) for i in range(max(1, len(found) - words + 1))}


def _words(trajectory: Trajectory) -> Iterator[str]:
    for step in trajectory.steps:
        message = step.message
        if message.role is Role.SYSTEM:
            continue
        yield f"\n{message.role.header}"  # distinct from words of a text, which never begin with a line break
        yield from message.thought.split()
        yield from message.text.split()
        for call in message.calls:
            yield from call_key(call).split()


class ExactDuplicates:
    """An index of the kept trajectories by hash: 32 bytes and a name each."""

    def __init__(self):
        self._seen: dict[bytes, str] = {}

    def reason(self, trajectory: Trajectory) -> str | None:
        """Names the earlier trajectory with the same content; None if there is none, and this one is added."""
        key = bytes.fromhex(content_hash(trajectory))
        if (earlier := self._seen.get(key)) is not None:
            return f"same content as {earlier:.200}"
        self._seen[key] = location_of(trajectory).run
        return None


class NearDuplicates:
    """An index of the kept trajectories by MinHash signature: `PERMUTATIONS` 32-bit numbers each."""

    def __init__(self, threshold: float, words: int):
        self._datasketch = _datasketch()
        self._threshold, self._words = threshold, words
        # More bands than the default: false positives of a band are rejected below by their similarity.
        weights = (0.1, 0.9)
        at = min(max(threshold, 0.05), 0.99)
        self._index = self._datasketch.MinHashLSH(threshold=at, num_perm=PERMUTATIONS, weights=weights)
        self._signatures: list[tuple[str, Any]] = []

    def reason(self, trajectory: Trajectory) -> str | None:
        """Names the most similar earlier trajectory; None if none reaches the threshold, and this one is added."""
        signature = self._datasketch.MinHash(num_perm=PERMUTATIONS, seed=1)
        signature.update_batch([shingle.encode() for shingle in shingles(trajectory, self._words)])
        near = sorted(self._index.query(signature))
        similar = [(signature.jaccard(self._signatures[i][1]), -i) for i in near]
        if similar and (best := max(similar))[0] >= self._threshold:
            return f"similarity {best[0]:.2f} with {self._signatures[-best[1]][0]:.200}"
        self._index.insert(len(self._signatures), signature)
        self._signatures.append((location_of(trajectory).run, signature))
        return None


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise InputError("filter.near_duplicates needs the package datasketch: pip install 'maverick-jax[dedup]', or "
                         "set it to null") from None  # fmt: skip
    return datasketch
