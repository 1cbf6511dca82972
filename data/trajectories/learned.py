"""Loss weights that a record gives its messages, under the names that different programs have for them."""

from data.trajectories import meaning
from data.trajectories.fields import Fields
from maverick_jax.errors import InputError


def take_weight(fields: Fields) -> float | None:
    """The loss weight of a message; None if the record does not say.

    `weight`, `loss_weight` and `loss_scale` are numbers. `train`, `training`, `trainable`, `loss` and `loss_mask` are
    true or 1 (weight 1) or false or 0 (weight 0); `masked` is the opposite. Raises InputError for fields that
    contradict each other, and for `mask` and weights of parts of a message.
    """
    for name in meaning.UNCLEAR:
        if meaning.is_given(fields.value.get(name)):
            raise InputError(f"{fields.path(name)}: not read: programs disagree about its meaning, or it weighs parts "
                             "of a message; give the whole message `train: false` or a `weight`")  # fmt: skip
    given = {name: fields.take(name, float, default=None) for name in meaning.NUMBERS}
    given |= {name: _switch(fields, name) for name in meaning.SWITCHES}
    masked = _switch(fields, "masked")
    given["masked"] = None if masked is None else 1 - masked
    found = {name: value for name, value in given.items() if value is not None}
    if len({value > 0 for value in found.values()}) > 1:
        names = ", ".join(f"{name}: {fields.value[name]!r:.20}" for name in found)
        raise InputError(f"{fields.where}: {names}: these contradict each other")
    return next(iter(found.values()), None)


def _switch(fields: Fields, name: str) -> float | None:
    value = fields.take(name, bool, float, default=None)
    if value not in (None, 0, 1):
        raise InputError(f"{fields.path(name)}: {value!r:.80}; expected true or false")
    return None if value is None else float(value)
