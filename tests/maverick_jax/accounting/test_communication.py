"""Bytes that TPU programs send otherwise than others."""

import dataclasses

import pytest

from maverick_jax.accounting.communication import communication
from maverick_jax.accounting.layout import Layout
from maverick_jax.config import ModelConfig
from maverick_jax.parameters import of_model
from maverick_jax.sharding import MESH_AXES, ShardingRules

MAVERICK = ModelConfig.from_name("maverick_17b_128e", compute_dtype="bfloat16")
SIZES = dict.fromkeys(MESH_AXES, 1) | {"fsdp": 4, "expert": 128}
GPU = Layout(ShardingRules(embed="expert"), SIZES, 2048, 8192, platform="gpu")


def sent(platform: str, **values) -> dict[str, int]:
    return communication(MAVERICK, dataclasses.replace(GPU, platform=platform, **values))


def more(rows: int) -> dict[str, int]:
    """What a TPU program sends beyond a GPU's, of so many rows on each device."""
    gpu, tpu = (sent(platform, batch_size=512 * rows) for platform in ("gpu", "tpu"))
    # attention that is fused on both, and an exchange that has as many rounds
    return {kind: tpu[kind] - gpu[kind] for kind in gpu if tpu[kind] != gpu[kind]}


def test_gradients_that_fill_no_lanes_are_summed_whole():
    """40 of 5,120 columns on each device: of the output matrix, but not in its last stage, of two devices, and of the
    last projections."""
    sizes = [(p, 126 if p.role == "head" else 127) for p in of_model(MAVERICK) if p.role in ("head", "attention")]
    shards = sum(2 * n * GPU.stored([p]) for p, n in sizes if p.role == "head" or p.name.endswith("/o"))
    assert more(rows=8) == {"reduce_scatter": -shards, "all_reduce": 2 * shards}
    wide = dataclasses.replace(GPU, rules=ShardingRules(embed="fsdp"))  # 1,280 columns
    gpu, tpu = (communication(MAVERICK, dataclasses.replace(wide, platform=p)) for p in ("gpu", "tpu"))
    assert (gpu["reduce_scatter"], gpu["all_reduce"]) == (tpu["reduce_scatter"], tpu["all_reduce"] - 2 * ids(4))


def ids(rows: int) -> int:
    return 511 * rows * 8192 * 4


@pytest.mark.parametrize(("rows", "summed"), [(1, False), (4, True), (8, False)])
def test_ids_whose_rows_fill_no_tile_are_summed(rows, summed):
    assert more(rows).get("gather", 0) == (-ids(rows) if summed else 0)
