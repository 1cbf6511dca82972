"""How well a model decides: to call, to answer or to ask; which tool, with which arguments.

Here by teacher forcing: at each label that is a choice, what would the model write, given all before it? Its likeliest
token is right if it is the label. Another one counts as a call if calls begin so, and as a question if it is one by the
rule for texts (`data.trajectories.decisions`). Counts add up over batches and devices. By generation:
`train.evaluation.generated`.
"""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import reshard

from data.rows.weighing import CHOICES
from data.trajectories.decisions import ARGUMENTS, CLASSES, CLOSES_SHIFT, DECIDES, NAME, Decision, is_question
from maverick_jax.ops.argmax import argmax_token
from maverick_jax.sharding import ShardingRules, axes_tuple
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Conversation, Message, Role, ToolCall, render
from maverick_jax.text.chat.reply import CALLING

if TYPE_CHECKING:  # it reads files, which no config needs
    from data.rows.dataset import Dataset

Tally = dict[str, Any]
DECIDED, CLOSED = (Decision.CALL, Decision.ANSWER, Decision.ASK), (Decision.ANSWER, Decision.ASK)
"""Classes of turns that are counted apart where it is seen whether they call, and where whether they ask."""
CASES = len(DECIDED) + len(CLOSED)


@dataclasses.dataclass(frozen=True)
class Written:
    """How data is written."""

    tokenizer: Tokenizer
    dialects: frozenset[str] = frozenset()
    """Of its agent runs."""

    @classmethod
    def of(cls, data: "Dataset") -> "Written":
        metas = [source.store.meta for source in data.sources]
        return cls(data.tokenizer, frozenset(meta["dialect"] for meta in metas if "dialect" in meta))


def tally(
    hidden: jax.Array, head: jax.Array, batch: dict[str, jax.Array], rules: ShardingRules, chunk: int | None = None
) -> Tally:
    """`counts` of a batch of arrays [b, T] whose hidden states are [b, T, D], for a head [D, V]."""
    guessed = argmax_token(hidden, head, rules=rules, chunk=chunk)
    return counts(guessed, batch["labels"], batch[CHOICES], head.shape[1], rules)


def counts(guessed: jax.Array, labels: jax.Array, choices: jax.Array, V: int, rules: ShardingRules) -> Tally:
    """Of int32[b, T] and what labels are to decisions uint8[b, T]. `right` int32[5], DECIDED and then CLOSED: choices
    where the guess is the label; `wrong` int32[5, V]: the others, by what was guessed; `calls` int32[2, 2], names and
    arguments: how many there are, and of how many every token is right."""
    axes, whole = axes_tuple(rules.batch), rules.storage("batch", None)

    def local(guessed, labels, choices):
        right, closes = guessed == labels, (choices >> CLOSES_SHIFT) & DECIDES
        cases = [choices & DECIDES == int(of) for of in DECIDED] + [closes == int(of) for of in CLOSED]
        missed = lambda case: jnp.zeros_like(guessed, shape=V).at[guessed].add((case & ~right).astype(jnp.int32))
        found = {
            "right": jnp.stack([jnp.sum(case & right, dtype=jnp.int32) for case in cases]),
            "wrong": jnp.stack([missed(case) for case in cases]),
            "calls": jnp.stack([_whole(choices & part > 0, right) for part in (NAME, ARGUMENTS)]),
        }
        return jax.tree.map(lambda x: lax.psum(x, axes), found)

    fields = [reshard(x, whole) for x in (guessed, labels, choices)]
    return jax.shard_map(local, in_specs=whole, out_specs=rules.storage())(*fields)


def _whole(part: jax.Array, right: jax.Array) -> jax.Array:
    """int32[2]: runs of consecutive tokens in `part` bool[b, T], and those of them that are right throughout."""
    edge = jnp.zeros_like(part[:, :1])
    begins = part & ~jnp.concatenate([edge, part[:, :-1]], axis=1)
    ends = part & ~jnp.concatenate([part[:, 1:], edge], axis=1)
    missed = (part & ~right).astype(jnp.int32)
    reached = jnp.cumsum(missed, axis=1)
    before = lax.cummax(jnp.where(begins, reached - missed, 0), axis=1)
    return jnp.stack([jnp.sum(x, dtype=jnp.int32) for x in (ends, ends & (reached == before))])


def told(sums: Tally, written: Written) -> dict[str, Any]:
    """What an evaluation says of `counts`, on the host: as `report`. Answers and questions are told apart where a turn
    has said all but its last word, given that it does not call."""
    right, wrong, (names, arguments) = (np.asarray(sums[name], np.int64) for name in ("right", "wrong", "calls"))
    tokens = np.flatnonzero(wrong.any(axis=0))
    calling = begins_call(tokens, written)
    asking = np.array([is_question(written.tokenizer.decode([token])) for token in tokens.tolist()], bool)
    total, wrong = right + wrong.sum(axis=1), wrong[:, tokens]
    called, asked = wrong[:3] @ calling, wrong[3:] @ asking
    called[0] += right[0]
    asked[1] += right[4]
    turns, closed = total[:3], total[3:]
    hits = np.array([called[0], closed[0] - asked[0], asked[1]])
    false = np.array([called[1:].sum(), closed[1] - asked[1], asked[0]])
    missed = np.array([turns[0] - called[0], asked[0], closed[1] - asked[1]])
    found = report(turns, hits, false, missed, called)
    found["call_rates"] |= rates(name_accuracy=names, arguments_exact=arguments)
    return found


def begins_call(tokens: np.ndarray, written: Written) -> np.ndarray:
    """bool[n]: whether a turn that begins with this token is taken for a call, as the dialects write calls."""
    call = Conversation((Message(Role.USER, "a"), Message(Role.ASSISTANT, calls=(ToolCall("a", {}),))))
    tokenizer = written.tokenizer
    calls = [next(s.text for s in render(call, tokenizer, d).spans if s.call >= 0) for d in written.dialects]
    opening = tuple(text.lstrip()[0] for text in calls)
    begins = lambda token: tokenizer.decode([token]).lstrip().startswith(opening)
    around = tokenizer.controls.get(CALLING[0])
    return np.array([token == around or begins(token) for token in tokens.tolist()], bool)


def report(
    turns: np.ndarray, hits: np.ndarray, false: np.ndarray, missed: np.ndarray, called: np.ndarray
) -> dict[str, Any]:
    """By class of turn, where there is something to divide by: `decisions`, how many turns; `decision_precision`,
    `decision_recall` and `decision_f1`. `call_rates`: `over_call`, calls where the run answered or asked; `under_call`,
    no call where the run called. All int64[3]: turns; judged so rightly; judged so wrongly; judged otherwise; and
    turns of each class that are judged calls."""
    judged, there = hits + false, hits + missed
    ratios = {"precision": (hits, judged), "recall": (hits, there), "f1": (2 * hits, judged + there)}
    by_class = lambda pair: {n: a / b for n, a, b in zip(CLASSES, *(x.tolist() for x in pair), strict=True) if b}
    found: dict[str, Any] = {"decisions": dict(zip(CLASSES, turns.tolist(), strict=True))}
    found |= {f"decision_{name}": by_class(pair) for name, pair in ratios.items()}
    return found | {
        "call_rates": rates(over_call=(turns[1:].sum(), called[1:].sum()), under_call=(turns[0], turns[0] - called[0]))
    }


def rates(**parts: Iterable[int]) -> dict[str, float]:
    """(of how many, how many) as parts, of those that there are."""
    return {name: float(part / whole) for name, (whole, part) in parts.items() if whole}
