"""FLOPs of a run's step, against XLA's own count of compiled gradients."""

import functools
import json

import jax
import pytest
from flax import nnx

from maverick_jax.accounting.flops import (
    EVERYTHING,
    NOTHING,
    attended_keys,
    flops_per_token,
    forward_flops_per_token,
    latent_flops_per_token,
)
from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from train.config_files import read_config
from train.flops import flops_of_run, trained
from train.objectives import Distill, Pretrain
from train.objectives.base import Context, Objective
from train.state import init_state
from train.step import accumulate
from train.trainable.config import TrainableConfig

T = 32
TOLERANCE = 0.05
"""XLA also counts norms, activations, softmax, rotary embeddings and the loss, at most a twentieth here."""


def model(layers: int, **changes) -> ModelConfig:
    """Wide enough that matrix products outweigh the rest. One expert has no loop over tiles, which XLA
    would count once."""
    wide = {"vocab_size": 256, "hidden_size": 128, "head_dim": 16, "intermediate_size": 192, "num_local_experts": 1}
    wide |= {"intermediate_size_mlp": 256, "attention_chunk_size": None, "num_hidden_layers": layers}
    return tiny.model_config(**wide | changes)


DENSE = {"num_local_experts": 0}
PRETRAIN = Pretrain()


def counted_by_xla(config: ModelConfig, trainable: TrainableConfig, objective: Objective, references) -> float:
    """FLOPs of the compiled gradient of one row: what a step computes before its optimizer."""
    adapters = trainable.adapters(config)
    optimizer = tiny.OPTIMIZER.build(tiny.STEPS, config, trainable.selection())
    init = functools.partial(init_state, config=config, rules=tiny.RULES, optimizer=optimizer)
    state = jax.eval_shape(functools.partial(init, objective=objective, heads=adapters), 0)
    batch = tiny.placed(tiny.batch(config, rows=1, length=T))
    chosen = optimizer.selection

    def gradient(state, batch, references):
        context = Context(state.step, state.objective, references)

        def loss(part, microbatch, totals):
            whole, _ = chosen.with_overlays(part, state.model, state.heads)
            return objective.loss(whole, microbatch, totals, context)

        return accumulate(loss, chosen.select(state.model, state.heads), batch, objective.totals(batch))[1]

    return jax.jit(gradient).lower(state, batch, references).compile().cost_analysis()["flops"]


def beyond(config: ModelConfig, parts: dict[str, float]) -> float:
    """FLOPs per token that XLA does and we do not count: scores of keys that the mask forbids."""
    pairs = sum(attended_keys(config, spec, T) for spec in config.layers)
    return parts["attention_scores"] * (T * T * len(config.layers) / pairs - 1)


def compare(config: ModelConfig, section: dict, teacher: ModelConfig | None = None):
    """(ours, XLA's), FLOPs per token. XLA counts the body of the loop over periods once."""
    trainable = TrainableConfig.model_validate_json(json.dumps(section))
    with jax.set_mesh(single_device_mesh()):
        abstract = lambda config: jax.eval_shape(lambda: Maverick(config, tiny.RULES, rngs=nnx.Rngs(0)))
        references = {"teacher": abstract(teacher)} if teacher else {}
        objective = Distill(teacher="anywhere") if teacher else PRETRAIN
        xla = counted_by_xla(config, trainable, objective, references) / T
    parts = flops_per_token(config, T, trained(trainable), T)
    head = parts.pop("head")
    in_layers = sum(parts.values()) + beyond(config, parts)
    if teacher:
        head += forward_flops_per_token(teacher, T) + beyond(teacher, flops_per_token(teacher, T, NOTHING))
    return in_layers / max(config.num_periods, 1) + head, xla


@pytest.mark.parametrize(
    ("config", "section"),
    [
        (model(2), {}),
        (model(2), {"parameters": ["head"]}),
        (model(2), {"parameters": ["norms"]}),
        (model(2), {"parameters": ["shared"]}),
        (model(2), {"parameters": ["experts"], "experts": {"1": [0]}}),
        (model(2), {"lora": {"rank": 8}}),
        (model(2), {"lora": {"rank": 8, "targets": ["mlp", "shared"]}}),
        (model(2), {"lora": {"rank": 8, "targets": ["experts"]}}),
        (model(4), {"parameters": ["experts"], "experts": {"3": [0]}}),
        (model(4, **DENSE, no_rope_layer_interval=2), {"parameters": ["mlp"]}),
    ],
    ids=lambda value: str(value.num_hidden_layers if isinstance(value, ModelConfig) else value),
)
def test_flops_equal_those_that_xla_counts(config, section):
    """Of the whole model; of parts, with nothing trained below them; of chosen experts; of adapters. In the tail, in
    one period, and in two."""
    ours, xla = compare(config, section)
    assert ours < xla < (1 + TOLERANCE) * ours


@pytest.mark.parametrize("section", [{}, {"lora": {"rank": 8}}], ids=str)
def test_flops_of_a_distillation_include_the_teachers_forward_pass(section):
    ours, xla = compare(model(1, **DENSE), section, teacher=model(2, hidden_size=192, **DENSE))
    assert ours < xla < (1 + TOLERANCE) * ours


def test_frozen_weights_cost_less():
    """What the audit found: an adapter of rank 2 took as many FLOPs as training all weights."""
    everything, lora, nothing = (
        sum(flops_per_token(model(8), T, of, T).values())
        for of in (EVERYTHING, trained(TrainableConfig.model_validate({"lora": {"rank": 2}})), NOTHING)
    )
    assert nothing == everything / 3 == forward_flops_per_token(model(8), T)
    assert 0.65 < lora / everything < 0.75  # 4 of 6 in matrices, 12 of 12 in scores


def run_config(*words: str):
    return read_config("pretrain_tiny", words)


def test_the_flops_of_a_run_follow_its_config():
    plain, lora = (flops_of_run(run_config(*words), {}) for words in ((), ("trainable.lora={rank: 2}",)))
    assert sum(plain.values()) == 6_798_336 and sum(lora.values()) < 0.8 * sum(plain.values())
    assert plain["adapters"] == 0 < lora["adapters"]
    distill = "objective={kind: distill, teacher: nowhere, teacher_config: pretrain_teacher_tiny, "
    teacher = {"teacher": ModelConfig.from_name("behemoth_tiny")}
    online = flops_of_run(run_config(distill + "}"), teacher)
    assert online["references"] == forward_flops_per_token(teacher["teacher"], 256)
    samples = "on_policy: {share: 0.5, max_tokens: 64, prompt_tokens: 64}}"
    on_policy = flops_of_run(run_config(distill + samples), teacher)
    model = ModelConfig.from_name("tiny")
    parts = flops_per_token(model, 127, NOTHING)
    assert on_policy["sampling"] == 0.5 * ((sum(parts.values()) - parts["head"]) * 127 + parts["head"] * 64) / 256
    hidden = "hidden: {layers: [[3, 3]], projection: true}}"
    assert flops_of_run(run_config(distill + hidden), teacher)["heads"] == 6 * 128 * 160
    offline = "objective={kind: distill, targets: {path: anywhere}}"
    assert sum(flops_of_run(run_config(offline), {}).values()) == sum(plain.values())


def test_adapters_of_routed_experts_are_merged_once_for_each_microbatch():
    words = ("trainable.lora={rank: 2, targets: [experts]}", "optimizer.accumulation_steps=")
    whole, halves = (flops_of_run(run_config(words[0], words[1] + n), {})["adapters"] for n in "12")
    assert halves == 2 * whole


@pytest.mark.parametrize(("gradient", "forward_alone"), [(None, 0), (1, 2)])
def test_passes_for_latents_cost_what_the_layers_and_the_feedback_do(gradient, forward_alone):
    """Three passes, of which `forward_alone` have no backward pass: a third of the FLOPs."""
    model = tiny.model_config(latent={"token_id": 3, "passes": 3, "gradient": gradient})
    once = flops_per_token(model, 24)
    layers = sum(once.values()) - once["head"]
    forward = sum(flops_per_token(model, 24, NOTHING).values()) - once["head"] / 3
    feedback = 2 * model.hidden_size**2
    expected = forward_alone * (forward + feedback) + (3 - forward_alone) * (layers + 3 * feedback)
    assert latent_flops_per_token(model, 24) == pytest.approx(expected)
    assert latent_flops_per_token(tiny.model_config(), 24) == 0
