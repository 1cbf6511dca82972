"""What a valid config says that has no effect, or another one than it seems to have. Each is a warning, of `maverick
train` and of `maverick plan`."""

from typing import Any

from maverick_jax.parameters import ROLES
from train.config import RunConfig

IGNORED = (
    ("optimizer.decay_fraction", "optimizer.schedule", lambda c: c.optimizer.schedule != "wsd"),
    ("optimizer.min_ratio", "optimizer.schedule", lambda c: c.optimizer.schedule == "constant"),
    ("model.balance.weight", "model.balance.kind", lambda c: c.model.balance.kind != "auxiliary_loss"),
    ("model.balance.bias_rate", "model.balance.kind", lambda c: c.model.balance.kind != "loss_free_bias"),
    ("model.expert_capacity_factor", "model.num_local_experts", lambda c: not c.model.num_moe_layers),
    ("logging.profile_steps", "logging.profile_start", lambda c: not c.logging.profile_start),
)
"""(key, the key that decides, whether it decides that the first one has no effect)."""


def warnings(config: RunConfig) -> list[str]:
    """One line per key, which it begins with."""
    found = []
    for key, decides, ignored in IGNORED:
        value, default = _at(config, key)
        if value != default and ignored(config):
            found.append(f"{key}: {value} has no effect with {decides}: {_at(config, decides)[0]}")
    return found + _multipliers(config) + _beyond_the_end(config) + _schedule(config) + _rollback(config)


def _multipliers(config: RunConfig) -> list[str]:
    """One line for each multiplier of a role without trained parameters."""
    trained = {p.role for p in config.trainable.selection().parameters(config.model.network)}
    if config.trainable.lora is not None:
        trained |= config.trainable.lora.roles
    chosen = ", ".join(role for role in ROLES if role in trained)
    return [
        f"optimizer.multipliers.{role}: {factor:g} has no effect: what is trained (section trainable) is {chosen}"
        for role, factor in config.optimizer.multipliers.named().items()
        if role not in trained
    ]


def _beyond_the_end(config: RunConfig) -> list[str]:
    run, found = config.run, []
    if run.eval_every > run.steps:
        found.append(
            f"run.eval_every: {run.eval_every} is beyond run.steps ({run.steps}): the run evaluates once, at its end"
        )
    if config.logging.profile_start > run.steps:
        found.append(
            f"logging.profile_start: {config.logging.profile_start} is beyond run.steps ({run.steps}): "
            "no step is traced"
        )
    return found


def _schedule(config: RunConfig) -> list[str]:
    optimizer, steps = config.optimizer, config.place.scheduled[1]
    warmup = optimizer.warmup_steps
    if warmup > steps:
        return [
            f"optimizer.warmup_steps: {warmup} is more than run.steps ({steps}): the learning rate ends at "
            f"{steps / warmup:.2g} of optimizer.learning_rate ({optimizer.learning_rate:g}), and never gets there"
        ]
    decay = round(steps * optimizer.decay_fraction)
    if optimizer.schedule == "wsd" and warmup + decay > steps:
        return [
            f"optimizer.decay_fraction: {decay} steps and optimizer.warmup_steps ({warmup}) are more than run.steps "
            f"({steps}): the learning rate decays in the {steps - warmup} steps after the warmup"
        ]
    return []


def _rollback(config: RunConfig) -> list[str]:
    rollback, budget = config.guard.rollback, config.run.skip_budget
    if rollback is None or rollback.after <= budget + 1:
        return []
    return [
        f"guard.rollback.after: {rollback.after} refused updates are more than run.skip_budget ({budget}) allows: the "
        "run ends before it goes back"
    ]


def _at(config: RunConfig, key: str) -> tuple[Any, Any]:
    """The value of a dotted key, and its default."""
    section: Any = config
    *path, name = key.split(".")
    for part in path:
        section = getattr(section, part)
    return getattr(section, name), type(section).model_fields[name].default
