"""What an engine needs on named devices, in closed form: bytes of weights, a slot and a token, slots that fit, and the
time to the first token."""

import math
import pathlib
from typing import Any

from launch.units import in_bytes
from maverick_jax import parameters
from maverick_jax.accounting.devices import DEVICES
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.accounting.serving import (
    Rates,
    first_token_seconds,
    latents_for,
    slot_bytes,
    state_bytes,
    text_bytes,
)
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.sharding import ShardingRules

PROMPTS = (500, 1000, 2000, 4000, 8000, 16000)
"""Tokens of the prompts whose first token is timed."""
SHARES = (0.15, 0.2)
"""Of the time to the first token: what latent thoughts may add."""
USABLE = 0.92
"""Fraction of a device's memory that a plan may use."""


def serving_plan(model: str, target: str, context: int) -> dict[str, Any]:
    """The plan of an engine for `model` (a shipped name, or what `load_pretrained` takes) on `target`, such as h200:8,
    with texts of up to `context` tokens. As many devices as divide the key/value heads split heads, hidden dimensions
    and vocabulary; groups of them split experts and slots. Bytes are per device unless stated otherwise. Raises
    InputError if the groups do not divide the experts."""
    device, count = _target(target)
    config = _config(model)
    if context < 1:
        raise InputError(f"--context {context}: expected 1 or more")
    ways = math.gcd(count, config.num_key_value_heads)
    groups, experts = count // ways, config.num_local_experts
    if groups > 1 and experts % groups:
        raise InputError(f"--serve {target}: {groups} groups of {ways} do not divide {experts} experts")
    rules = ShardingRules()
    sizes = {str(rules.heads): ways, str(rules.experts): groups}
    layout = Layout(rules, sizes, groups, context, platform=DEVICES[device].platform)
    weights = layout.stored(parameters.of_model(config)) * BYTES[config.compute_dtype]
    per_slot = slot_bytes(config, context) // ways + state_bytes(config)
    limit = int(DEVICES[device].memory_gb * 1e9 * USABLE)
    slots = groups * max(0, (limit - weights) // per_slot)
    return {
        "model": model,
        "hardware": device,
        "devices": count,
        "context": context,
        "dtype": config.compute_dtype,
        "bytes_of_a_text": text_bytes(config, context),
        "bytes_per_device": {"weights": weights, "slot": per_slot, "limit": limit},
        "slots": slots,
        "fits": slots > 0,
        "first_token": _first_tokens(config, device, count, context),
    }


def _first_tokens(config: ModelConfig, device: str, count: int, context: int) -> list[dict[str, Any]]:
    """By length of a lone prompt: seconds to the first token, what another latent thought adds to them, and the numbers
    of latents that add at most `SHARES`. Devices share all work evenly and send each other nothing."""
    rates = Rates(count * DEVICES[device].matrix_rate, count * DEVICES[device].memory_rate)
    found = []
    for prompt in (length for length in PROMPTS if length <= context):
        plain, one, two = (first_token_seconds(config, prompt, n, rates) for n in (0, 1, 2))
        latents = {f"{share:.0%}": latents_for(config, prompt, share, rates) for share in SHARES}
        found.append({"prompt": prompt, "seconds": plain, "seconds_per_latent": two - one, "latents_within": latents})
    return found


def _target(target: str) -> tuple[str, int]:
    name, _, count = target.partition(":")
    if name not in DEVICES:
        raise InputError(f"--serve {target}: no device {name!r}{did_you_mean(name, DEVICES)}")
    if not count.isdecimal() or not int(count):
        raise InputError(f"--serve {target}: expected a device and their number, such as {name}:8")
    return name, int(count)


def _config(model: str) -> ModelConfig:
    if pathlib.Path(model).expanduser().is_dir():
        from maverick_jax.pretrained import config_of

        return config_of(model, "bfloat16")
    return ModelConfig.from_name(model, param_dtype="bfloat16", compute_dtype="bfloat16")


def render(plan: dict[str, Any]) -> str:
    """The plan for the terminal."""
    held, text = plan["bytes_per_device"], plan["bytes_of_a_text"]
    verdict = f"{plan['slots']} slots fit" if plan["fits"] else "no slot fits"
    return "\n".join(
        [
            f"{plan['model']} on {plan['devices']} x {plan['hardware']}, texts of up to {plan['context']:,} tokens",
            f"  a text        {in_bytes(text['per_token'])} a token in layers with global attention, "
            f"{in_bytes(text['rings'])} in rings of the others",
            f"  weights       {in_bytes(held['weights'])} per device, {plan['dtype']}",
            f"  a slot        {in_bytes(held['slot'])} per device",
            f"  limit         {in_bytes(held['limit'])} per device",
            *map(_first_token, plan["first_token"]),
            f"  {verdict}",
        ]
    )


def _first_token(found: dict[str, Any]) -> str:
    within = " and ".join(f"{n} latents within {share}" for share, n in found["latents_within"].items())
    each = found["seconds_per_latent"]
    return (
        f"  first token   {found['seconds'] * 1e3:.1f} ms after {found['prompt']:,} tokens; a latent thought adds "
        f"{each * 1e3:.2f} ms ({each / found['seconds']:.1%}): {within}"
    )
