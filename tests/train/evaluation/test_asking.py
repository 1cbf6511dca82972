"""Asking an engine: continuations, and full queues."""

import pytest

from maverick_jax.errors import InputError, QueueFull
from maverick_jax.inference.engine import GenerationRequest
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Message, Role
from tests.helpers.answering_engine import ScriptedEngine
from train.evaluation.asking import Continuation, continuation, likelihoods, written

BYTES = load_tokenizer("bytes")


class ShortQueue(ScriptedEngine):
    """Takes two requests until an answer is read."""

    waiting = 0

    def submit(self, request, n=1):
        if self.waiting == 2:
            raise QueueFull("two wait")
        self.waiting += 1
        (generation,) = super().submit(request, n)
        result = generation.result

        def read():
            self.waiting -= 1
            return result()

        generation.result = read
        return [generation]


def test_a_full_queue_is_waited_for_and_answers_come_in_order():
    engine = ShortQueue(lambda prompt: [prompt[0] + 1])
    asked = [GenerationRequest([i], 1) for i in range(7)]
    seen = []
    assert [w.tokens for w in written(engine, asked, seen.append)] == [(i + 1,) for i in range(7)]
    assert seen == list(range(1, 8))


def test_spaces_at_the_end_of_a_prompt_belong_to_the_continuation():
    found = continuation("a b  ", "c", BYTES)
    assert BYTES.decode(found.tokens[found.begin :]) == "  c" and found.tokens[0] == BYTES.bos_id
    chat = continuation(Conversation((Message(Role.USER, "x"),)), "A", BYTES)
    assert BYTES.decode(chat.tokens[chat.begin :]) == "A" and chat.tokens.count(BYTES.bos_id) == 1
    with pytest.raises(InputError, match="has no token of its own"):
        continuation("a", "", BYTES)


def test_likelihoods_are_in_order_whatever_the_lengths():
    engine = ScriptedEngine(score_of=lambda before, token: -float(token))
    asked = [Continuation([1, *range(2, n)], 1) for n in (4, 9, 6)]
    assert [one.log_prob for one in likelihoods(engine, asked, lambda done: None)] == [-5.0, -35.0, -14.0]
