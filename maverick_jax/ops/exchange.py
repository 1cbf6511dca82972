"""Rows that devices send each other by all-to-all, in rounds of static size, until every row has been sent.

The first rounds always run, and for balanced routing no others are needed. They are no loop, so that the compiler
moves other work beside their transfers: one round's rows are sent while another's are multiplied. Further rounds run
only if some device needs them, so that even the most skewed routing drops no row. Where experts take a limited number
of rows (`ops.expert_limit`), one round has room for all.

M rows on this device, D model, E experts, e experts on this device, R devices, C rows to each device in a round.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from maverick_jax.saved import RECEIVED

DEVIATIONS = 6
"""Standard deviations of the rows that one device has for another, if tokens choose experts at random, for which the
first rounds have room beyond an even share. Thousands of pairs of devices then need no further round."""
FIRST_ROUNDS = {"cpu": 1, "gpu": 4, "tpu": 4}
"""The most rounds into which the first rows are divided, by platform: simulated devices send nothing in the
background."""
LEAST_ROWS = 8192
"""Rows that a device receives in a round at least, if they are divided: matrix products of fewer are slow."""


class Capacity(NamedTuple):
    """How many rows the first rounds have room for."""

    rounds: int
    """Number of the first rounds."""
    rows: int
    """Rows that one device can send to another in a round, C."""
    further: bool = True
    """Whether a device can have more rows for another, which further rounds send."""

    @property
    def total(self) -> int:
        """Rows that one device can send to another in all first rounds; that many are sent, some of them empty."""
        return self.rounds * self.rows


def capacity(num_rows: int, devices: int, platform: str) -> Capacity:
    """Of devices that send `num_rows` rows each."""
    share = num_rows / devices
    room = min(num_rows, math.ceil(share + DEVIATIONS * math.sqrt(share)))
    rounds = max(1, min(FIRST_ROUNDS[platform], room * devices // LEAST_ROWS))
    return Capacity(rounds, 8 * math.ceil(room / rounds / 8))


def limited_capacity(sequences: int, length: int, experts_per_token: int, num_local: int, limit: int) -> Capacity:
    """Of devices that have `length` tokens each of `sequences`, if an expert, of `num_local` on a device, takes at most
    `limit` tokens of a sequence: one round, of all rows that a device can have for another."""
    room = sequences * min(length * experts_per_token, num_local * min(length, limit))
    return Capacity(1, 8 * math.ceil(room / 8), further=False)


@dataclasses.dataclass(frozen=True)
class Among:
    """Between which devices rows are exchanged, seen from inside `shard_map`."""

    axes: tuple[str, ...]
    """Mesh axes along which the experts lie."""
    varying: tuple[str, ...]
    """Mesh axes along which the rows differ."""


class Places(NamedTuple):
    """Which rows go where. Once sorted by expert, the rows for one device are contiguous, and so are those for one of
    its experts."""

    order: jax.Array  # int32[M], this device's rows sorted by expert
    start: jax.Array  # int32[R], where those for a device begin
    count: jax.Array  # int32[R], how many they are
    ends: jax.Array | None  # int32[R, e], where the rows from a device for an expert here end; None: one expert
    rounds: jax.Array | None  # int32[], rounds that the device with the most rows for another needs; None: the first


@jax.named_scope("dispatch")
def places(among: Among, expert: jax.Array, num_local: int, size: Capacity) -> Places:
    """Of rows for the experts int32[M], `num_local` on each device; numbers past the last mean no expert."""
    devices = lax.axis_size(among.axes)
    experts = jnp.arange(devices * num_local, dtype=expert.dtype)
    counts = jnp.sum(expert[:, None] == experts[None, :], axis=0, dtype=jnp.int32).reshape(devices, num_local)
    count = jnp.sum(counts, axis=1)
    found = Places(
        order=jnp.argsort(expert, stable=True).astype(jnp.int32),
        start=jnp.cumsum(count) - count,
        count=count,
        ends=jnp.cumsum(_all_to_all(among, counts), axis=1) if num_local > 1 else None,
        # all devices must run the same number of rounds, or the all-to-alls would not match
        rounds=lax.pmax(-(-jnp.max(count) // size.rows), among.varying) if size.further else None,
    )
    return jax.tree.map(lambda x: checkpoint_name(x, RECEIVED), found)


@jax.named_scope("dispatch")
def send(among: Among, places: Places, size: Capacity, rows: jax.Array, i) -> jax.Array:
    """[M, D]: rows of this device -> [R * C, D]: those of round i for its experts, and zeros where there are fewer."""
    sent = rows.at[_slots(places, size, i)].get(mode="fill", fill_value=0)
    return _all_to_all(among, sent).reshape(-1, rows.shape[-1])


@jax.named_scope("dispatch")
def expert_of_received(places: Places, size: Capacity, i) -> jax.Array:
    """Local expert of each row received in round i, int32[R * C]. Of several experts, e in empty slots; a single one
    may have the zeros in them."""
    if places.ends is None:
        return jnp.zeros((len(places.count) * size.rows,), jnp.int32)
    slot = i * size.rows + jnp.arange(size.rows, dtype=jnp.int32)
    return jnp.sum(slot[None, :, None] >= places.ends[:, None, :], axis=-1, dtype=jnp.int32).reshape(-1)


@jax.named_scope("dispatch")
def send_back(among: Among, places: Places, size: Capacity, results: jax.Array, out: jax.Array, i) -> jax.Array:
    """Sends back the results [R * C, D] of this device's experts; returns `out` [M, D] with those of round i."""
    returned = _all_to_all(among, results.reshape(len(places.count), size.rows, -1))
    return out.at[_slots(places, size, i)].set(returned, mode="drop", unique_indices=True)


def _slots(places: Places, size: Capacity, i) -> jax.Array:
    """Rows to send in round i, int32[R, C]; M in empty slots."""
    num_rows = len(places.order)
    slot = i * size.rows + jnp.arange(size.rows, dtype=jnp.int32)
    index = jnp.minimum(places.start[:, None] + slot[None, :], num_rows - 1)
    return jnp.where(slot[None, :] < places.count[:, None], places.order[index], num_rows)


def _all_to_all(among: Among, x: jax.Array) -> jax.Array:
    return lax.all_to_all(x, among.axes, split_axis=0, concat_axis=0, tiled=True)
