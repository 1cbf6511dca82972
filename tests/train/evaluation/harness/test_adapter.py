"""The adapter of lm-evaluation-harness: requests, and parity with the harness's own model of a Hugging Face folder."""

import random

import pytest

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from lm_eval.api.instance import Instance

from maverick_jax.errors import InputError
from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.inference.engine.plain import PlainEngine
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import load_pretrained, save_pretrained
from maverick_jax.text import load_tokenizer
from tests.helpers import tiny
from tests.helpers.answering_engine import ScriptedEngine
from train.evaluation.harness.adapter import ChatPrompt, EngineModel

BYTES = load_tokenizer("bytes")
EOT = BYTES.controls["<|eot|>"]
WORDS = ["the", "a", "cat", "dog", "sat", "ran", "under", "mat", "tree", "and", "then", "it", "dark", "été", "42", "!"]


def instances(kind: str, *arguments) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def scored(engine, *pairs):
    return EngineModel(engine, BYTES).loglikelihood(instances("loglikelihood", *pairs))


def test_each_scored_sequence_begins_with_one_begin_token_and_only_the_continuation_counts():
    engine = ScriptedEngine(score_of=lambda before, token: -float(token))
    found = scored(engine, ("ab", "c"), ("", "c"), ("<|begin_of_text|>", "c"))
    assert found == [(-99.0, True)] * 3
    assert [sequence.count(BYTES.bos_id) for sequence in engine.scored] == [1, 1, 1]
    assert {tuple(s) for s in engine.scored} == {
        (BYTES.bos_id, *BYTES.encode("abc")), (BYTES.bos_id, *BYTES.encode("c")),
        (BYTES.bos_id, *BYTES.encode("<|begin_of_text|>c")),
    }  # fmt: skip


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation():
    engine = ScriptedEngine(score_of=lambda before, token: -float(token))
    assert scored(engine, ("ab ", "c")) == [(-float(32 + 99), True)]


def test_a_context_that_is_too_long_is_cut_from_the_left_behind_the_begin_token():
    engine = ScriptedEngine(context=6)
    model = EngineModel(engine, BYTES)
    model.loglikelihood(instances("loglikelihood", ("abcdefghij", "xyz")))
    assert engine.scored == [[BYTES.bos_id, *BYTES.encode("ijxyz")]] and model.counts["contexts_cut"] == 1
    with pytest.raises(InputError, match="a continuation of 6 tokens; expected fewer than 6"):
        model.loglikelihood(instances("loglikelihood", ("a", "uvwxyz")))


def test_rolling_predicts_each_token_once():
    engine = ScriptedEngine(context=5)
    model = EngineModel(engine, BYTES)
    assert model.loglikelihood_rolling(instances("loglikelihood_rolling", ("abcdefghij",))) == [-10.0]
    assert [BYTES.bos_id, *BYTES.encode("abcd")] in engine.scored


def test_answers_end_before_the_first_stop_text_and_are_otherwise_untouched():
    written = {"Q": " 4. \n#### 4\n\nQuestion: 2", "R": "  x "}
    engine = ScriptedEngine(lambda p: [*BYTES.encode(written[BYTES.decode(p)]), EOT])
    model = EngineModel(engine, BYTES)
    found = model.generate_until(
        instances("generate_until", ("Q", {"until": ["Question:", "\n\n"]}), ("R", {"until": []}))
    )
    assert found == [" 4. \n#### 4", "  x "]
    assert [request.max_tokens for request in engine.requests] == [256, 256]
    assert engine.requests[0].sampling.temperature == 0 and EOT in engine.requests[0].stop_ids


def test_settings_reach_the_engine_or_are_refused():
    engine = ScriptedEngine(lambda p: [EOT])
    ask = lambda **settings: EngineModel(engine, BYTES).generate_until(instances("generate_until", ("Q", settings)))
    ask(do_sample=True, temperature=0.7, top_p=0.9, max_gen_toks=9)
    assert (engine.requests[-1].sampling.temperature, engine.requests[-1].sampling.top_p) == (0.7, 0.9)
    assert engine.requests[-1].max_tokens == 9
    ask(do_sample=False, temperature=0.7)
    assert engine.requests[-1].sampling.temperature == 0
    with pytest.raises(InputError, match="'temprature': unknown setting; did you mean temperature"):
        ask(temprature=1)


def test_repeats_have_different_seeds():
    engine = ScriptedEngine(lambda p: [EOT])
    EngineModel(engine, BYTES).generate_until(instances("generate_until", *[("Q", {"do_sample": True})] * 3))
    assert len({request.seed for request in engine.requests}) == 3


def test_chats_keep_their_messages():
    engine = ScriptedEngine(lambda p: [EOT])
    model = EngineModel(engine, BYTES)
    assert "header_start" in model.chat_template(True)
    prompt = model.apply_chat_template([{"role": "user", "content": "Hi <|eot|>"}])
    assert isinstance(prompt, ChatPrompt) and prompt.encode().count(b"<|eot|>") == 2
    model.generate_until(instances("generate_until", (prompt, {})))
    ids = list(engine.requests[0].prompt)
    assert ids.count(EOT) == 1 and ids.count(BYTES.bos_id) == 1, "the text's control token is ordinary text"
    begun = model.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The"}], False
    )
    model.generate_until(instances("generate_until", (begun, {})))
    assert BYTES.decode(engine.requests[1].prompt).endswith("The")
    with pytest.raises(InputError, match="gives a chat as plain text"):
        model.generate_until(instances("generate_until", (str(prompt) + "x", {})))


# ---- parity ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a model with all kinds of layers."""
    path = tmp_path_factory.mktemp("parity") / "model"
    # every id is one of the tokenizer's: others are decoded differently by transformers
    config = tiny.model_config(
        vocab_size=BYTES.vocab_size, no_rope_layer_interval=2, attention_chunk_size=64, floor_scale=8192
    )
    save_pretrained(Maverick.init(config), path, "float32")
    write_hugging_face(BYTES, path)
    return path


def texts(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))


@pytest.mark.oracles
@pytest.mark.slow
@pytest.mark.parametrize("count", [1000])
@pytest.mark.filterwarnings("ignore")
def test_parity_with_the_harness_own_model(folder, count):
    pytest.importorskip("accelerate", reason="the harness's own model needs torch and accelerate")
    from lm_eval.models.huggingface import HFLM

    draw = random.Random(0)
    theirs = HFLM(
        pretrained=str(folder), dtype="float32", device="cpu", batch_size=8, add_bos_token=True, max_length=512
    )
    tokenizer = load_tokenizer(folder)
    theirs.model.generation_config.eos_token_id = sorted(stop_ids(tokenizer))  # as in the released models' own
    with PlainEngine(load_pretrained(folder), tokenizer) as engine:
        ours = EngineModel(engine, tokenizer)
        pairs = [(texts(draw, 0, 30), " " + texts(draw, 1, 3)) for _ in range(count * 7 // 10)]
        asked = instances("loglikelihood", *pairs)
        for (a, greedy_a), (b, greedy_b), pair in zip(
            ours.loglikelihood(asked), theirs.loglikelihood(asked), pairs, strict=True
        ):
            assert a == pytest.approx(b, abs=1e-4) and greedy_a == greedy_b, pair
        settings = {"until": ["\n", "th"], "max_gen_toks": 12, "do_sample": False}
        prompts = instances("generate_until", *[(texts(draw, 1, 30), dict(settings)) for _ in range(count // 5)])
        assert ours.generate_until(prompts) == theirs.generate_until(prompts)
        theirs.add_bos_token = False  # with it, its windows begin with two
        documents = instances("loglikelihood_rolling", *[(texts(draw, 1, 40),) for _ in range(count // 10)])
        for a, b in zip(ours.loglikelihood_rolling(documents), theirs.loglikelihood_rolling(documents), strict=True):
            assert a == pytest.approx(b, abs=1e-4, rel=5e-7)  # theirs adds up hundreds of terms in float32
