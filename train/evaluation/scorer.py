"""A reward model that scores conversations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.rows.fields import FIELDS
from maverick_jax.errors import InputError
from maverick_jax.inference.engine.lengths import bucket
from maverick_jax.model.heads import Judgements, judgements
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import load_pretrained
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import Tokenizer, load_tokenizer
from maverick_jax.text.chat import Conversation, Role, dialect_of, render
from train.evaluation.carried import heads_in
from train.objectives.reward import TURNS, Reward

LABELS = FIELDS[TURNS].values


@dataclasses.dataclass(frozen=True)
class RunScore:
    """The scores of one conversation."""

    reward: float
    """The reward of the whole, in the unit of a Bradley-Terry model: only differences between runs of one task
    count."""
    turns: tuple[tuple[int, tuple[float, ...]], ...]
    """Of each assistant message: its index and a logit for each label."""

    @property
    def turn_rewards(self) -> list[float]:
        """Of each turn: the logit of `good` minus the largest of the others."""
        return [logits[0] - max(logits[1:]) for _, logits in self.turns]

    @property
    def estimate(self) -> float:
        """The reward plus the smallest reward of a turn, which long good beginnings do not raise."""
        return self.reward + min(self.turn_rewards, default=0.0)

    def as_json(self) -> dict[str, Any]:
        odds = lambda logits: {name: _probability(x) for name, x in zip(LABELS, logits, strict=True)}
        turns = [{"message": i, **odds(logits)} for i, logits in self.turns]
        return {"reward": self.reward, "estimate": self.estimate, "turns": turns}


class Scorer:
    """A reward model that scores conversations, one after the other, on one device."""

    def __init__(self, checkpoint: str, dialect: str | None = None):
        """Raises InputError for a checkpoint without reward heads."""
        self.tokenizer: Tokenizer = load_tokenizer(checkpoint)
        self.dialect = dialect_of(dialect, self.tokenizer).name
        self._mesh = single_device_mesh()
        self._model = load_pretrained(checkpoint, mesh=self._mesh)
        objective = Reward()
        with jax.set_mesh(self._mesh):
            self._heads = heads_in(objective, checkpoint, self._model)
        if len(self._heads) < len(objective.heads(self._model.config, {})):
            raise InputError(f"{checkpoint}: no reward heads for its model; expected a checkpoint of a run with "
                             "objective.kind: reward")  # fmt: skip

    def __call__(self, conversation: Conversation) -> RunScore:
        """Raises InputError for a conversation that the chat format cannot write."""
        rendered = render(conversation, self.tokenizer, self.dialect)
        size = rendered.ids.size
        tokens, segments = np.zeros((2, 1, bucket(size)), np.int32)
        tokens[0, :size], segments[0, :size] = rendered.ids, 1
        with jax.set_mesh(self._mesh):
            found = jax.device_get(_judged(self._model, self._heads, jnp.asarray(tokens), jnp.asarray(segments)))
        own = [i for i, message in enumerate(conversation.messages) if message.role is Role.ASSISTANT]
        ends = [(i, int(np.flatnonzero(rendered.messages == i)[-1])) for i in own]
        turns = tuple((i, tuple(found.turns[0, at].tolist())) for i, at in ends)
        return RunScore(float(found.reward[0, size - 1]), turns)


@jax.jit
def _judged(model: Maverick, heads: dict[str, nnx.Param], tokens: jax.Array, segments: jax.Array) -> Judgements:
    hidden, _ = model.hidden(Inputs(tokens, segment_ids=segments))
    return judgements(hidden, heads, model.rules)


def _probability(logit: float) -> float:
    return float(1 / (1 + np.exp(-np.float64(logit))))
