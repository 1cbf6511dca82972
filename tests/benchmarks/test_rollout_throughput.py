"""What a load consists of: which request goes on from which."""

from benchmarks.rollout_throughput import Recorder, chains, replay
from maverick_jax.inference.engine import GenerationRequest
from maverick_jax.inference.sampling import Sampling
from maverick_jax.text import load_tokenizer
from tests.helpers.scripted_engine import ScriptedEngine

BYTES = load_tokenizer("bytes")


def request(prompt: list[int], seed: int = 0) -> GenerationRequest:
    return GenerationRequest(prompt, 2, Sampling(1.0), seed)


def test_requests_are_given_again_in_the_order_of_their_episodes():
    engine = ScriptedEngine(BYTES, lambda asked: [7 + asked.seed] * 2)
    recorder = Recorder(engine)
    recorder.submit(request([1, 2]), 2)  # two episodes: [1, 2, 7, 7] and [1, 2, 8, 8]
    recorder.submit(request([1, 3], 5))
    recorder.submit(request([1, 2, 8, 8, 4], 1))
    recorder.submit(request([1, 2, 8, 8, 4, 8, 8, 6], 2))
    begun, following = chains(recorder.submitted)
    assert [len(found) for _, found in begun] == [2, 1]
    assert [[r.seed for r in after] for after in following] == [[], [1, 2], []]
    assert replay(engine, begun, following) == 2 * 5
    engine.close()
