"""Costs read off compiled programs equal those counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from maverick_jax.accounting import devices
from maverick_jax.accounting.compiled import by_kind, collectives, flops, host_copies, roofline, traffic
from maverick_jax.accounting.devices import DEVICES
from maverick_jax.accounting.hlo import Program
from maverick_jax.sharding import MESH_AXES

SIZES = dict.fromkeys(MESH_AXES, 1) | {"data": 2, "fsdp": 2, "expert": 2}


def of_shards(mesh_of, local, *shapes: tuple[int, ...]) -> Program:
    """The program that calls `local` on each of 8 devices with float32 arrays of these local shapes."""
    with mesh_of(data=2, fsdp=2, expert=2):
        replicated = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated) for shape in shapes]
        mapped = jax.shard_map(local, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
        return Program.parse(jax.jit(mapped).lower(*arrays).compile().as_text())


@pytest.mark.parametrize(
    ("local", "kind", "axes", "sent"),
    [
        (lambda x: lax.psum(x, "fsdp"), "all-reduce", ("fsdp",), 2 * 64 // 2),
        (lambda x: lax.psum(x, ("data", "expert")), "all-reduce", ("data", "expert"), 2 * 64 * 3 // 4),
        (lambda x: lax.all_gather(x, ("fsdp", "expert")), "all-gather", ("fsdp", "expert"), 64 * 3),
        (lambda x: lax.psum_scatter(x, "data", tiled=True), "reduce-scatter", ("data",), 64 // 2),
        (lambda x: lax.all_to_all(x, "expert", 0, 0, tiled=True), "all-to-all", ("expert",), 64 // 2),
        (lambda x: lax.ppermute(x, "fsdp", [(0, 1), (1, 0)]), "collective-permute", ("fsdp",), 64),
    ],
    ids=["psum", "psum of two axes", "all_gather", "psum_scatter", "all_to_all", "ppermute"],
)
def test_a_collective_has_its_axes_and_its_bytes(mesh_of, local, kind, axes, sent):
    (found,) = collectives(of_shards(mesh_of, local, (16,)), SIZES)
    assert (found.kind, found.axes, found.bytes, found.times) == (kind, axes, sent, 1)


def test_collectives_of_a_loop_count_every_turn(mesh_of):
    def local(x):
        return lax.fori_loop(0, 5, lambda _, x: lax.psum(x, "fsdp") * 0.5, x)

    (entry,) = by_kind(collectives(of_shards(mesh_of, local, (16,)), SIZES)).values()
    assert (entry["bytes"], entry["times"], entry["alone"]) == (5 * 64, 5, 5 * 64)


REDUCE = """ENTRY %main (x: f32[16]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  ROOT %y = f32[16]{0} all-reduce(%x), replica_groups=GROUPS, use_global_device_ids=true
}
"""


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{}", ("data", "fsdp", "expert")),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        ("[2,4]<=[8]", ("fsdp", "expert")),
        ("[4,2]<=[4,2]", ("expert",)),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", ("fsdp", "expert")),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", ("data",)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ("data", "expert")),
    ],
)
def test_groups_in_every_form_that_xla_writes(groups, axes):
    (found,) = collectives(Program.parse(REDUCE.replace("GROUPS", groups)), SIZES)
    assert found.axes == axes and len(found.group) == 2 ** len(axes)


def test_groups_in_an_unknown_form_are_an_error():
    with pytest.raises(ValueError, match="not known"):
        collectives(Program.parse(REDUCE.replace("GROUPS", "<0,1>")), SIZES)


def test_flops_of_products_equal_a_count_by_hand():
    def f(x, w, b):
        once = jnp.einsum("TD,DF->TF", x, w)
        return lax.scan(lambda x, _: (jnp.tanh(jnp.einsum("TF,FG->TG", x, b)), None), once, length=3)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 64), (64, 16), (16, 16))]
    text = jax.jit(f).lower(*shapes).compile().as_text()
    assert flops(Program.parse(text)) == 2 * 32 * 64 * 16 + 3 * 2 * 32 * 16 * 16


TPU = """
%fused (p0: bf16[32,64], p1: bf16[64,16]) -> f32[32,16] {
  %p0 = bf16[32,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[64,16]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %product = f32[32,16]{1,0:T(8,128)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[32,64], w: bf16[64,16]) -> f32[32,16] {
  %x = bf16[32,64]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[64,16]{1,0:T(8,128)(2,1)} parameter(1)
  %start = (bf16[32,64]{1,0:T(8,128)(2,1)S(1)}, bf16[32,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %here = bf16[32,64]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  ROOT %out = f32[32,16]{1,0:T(8,128)} fusion(%here, %w), kind=kOutput, calls=%fused
}
"""


def test_a_product_of_a_tpu_program():
    """A convolution; what a copy brought into the core's memory before is not read from the device's."""
    program = Program.parse(TPU)
    main = program.computations["main"]
    assert flops(program) == 2 * 32 * 64 * 16
    assert traffic(program, main, main.by_name["out"]) == 2 * 64 * 16 + 4 * 32 * 16


SLICES = """
%fused (p0: f32[100,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
}

%update (q0: f32[100,8], q1: f32[1,8], q2: s32[]) -> f32[100,8] {
  %q0 = f32[100,8]{1,0} parameter(0)
  %q1 = f32[1,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %put = f32[100,8]{1,0} dynamic-update-slice(%q0, %q1, %q2, %none)
}

ENTRY %main (x: f32[100,8], i: s32[]) -> f32[100,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %copy = f32[100,8]{1,0} copy(%x)
  ROOT %out = f32[100,8]{1,0} fusion(%copy, %row, %i), kind=kLoop, calls=%update
}
"""


@pytest.mark.parametrize(("name", "moved"), [("row", 32 + 32 + 4), ("copy", 2 * 3200), ("out", 32 + 32 + 4)])
def test_a_slice_of_a_large_array_moves_the_slice_alone(name, moved):
    program = Program.parse(SLICES)
    main = program.computations["main"]
    assert traffic(program, main, main.by_name[name]) == moved


OVERLAPPED = """
ENTRY %main (x: f32[1000000], y: f32[1000000]) -> f32[1000000] {
  %x = f32[1000000]{0} parameter(0)
  %y = f32[1000000]{0} parameter(1)
  %start = f32[1000000]{0} all-reduce-start(%x), replica_groups={{0,2},{1,3},{4,6},{5,7}}
  %beside = f32[1000000]{0} copy(%y)
  %done = f32[1000000]{0} all-reduce-done(%start)
  ROOT %sum = f32[1000000]{0} add(%done, %beside)
}
"""


def test_work_between_start_and_end_hides_a_collective():
    device = dataclasses.replace(DEVICES["h200"], bandwidth=8e6 / devices.MEMORY_SHARE, link=8e6 / devices.WIRE_SHARE)
    both = OVERLAPPED, OVERLAPPED.replace("  %beside = f32[1000000]{0} copy(%y)\n", "").replace("%beside)", "%y)")
    found = []
    for text in both:
        program = Program.parse(text)
        found.append(roofline(program, collectives(program, SIZES), device))
    hidden, exposed = found
    # 4 MB go over a wire of 8 MB/s; the copy reads and writes 8 MB at 8 MB/s
    assert hidden.wire == exposed.wire == pytest.approx(0.5, abs=1e-4)
    assert (hidden.exposed, exposed.exposed) == (0, pytest.approx(0.5, abs=1e-4))
    assert hidden.step == pytest.approx(1 + 1.5, abs=1e-3) and exposed.step == pytest.approx(0.5 + 1.5, abs=1e-3)


OFFLOADED = """
%moved (p: f32[6,500,2000], i: s32[]) -> f32[1,500,2000] {
  %p = f32[6,500,2000]{2,1,0:S(5)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %slice = f32[1,500,2000]{2,1,0} dynamic-slice(%p, %i, %i, %i), dynamic_slice_sizes={1,500,2000}
}

ENTRY %main (x: f32[1000000], i: s32[]) -> f32[1,500,2000] {
  %x = f32[1000000]{0} parameter(0)
  %i = s32[] parameter(1)
  %out = (f32[1000000]{0:S(5)}, f32[1000000]{0}, u32[]) copy-start(%x)
  %beside = f32[1000000]{0} copy(%x)
  %there = f32[1000000]{0:S(5)} copy-done(%out)
  %stack = f32[6,500,2000]{2,1,0:S(5)} custom-call(), custom_call_target="AllocateBuffer"
  %in = ((f32[6,500,2000]{2,1,0:S(5)}, s32[]), f32[1,500,2000]{2,1,0}, u32[]) fusion-start(%stack, %i), calls=%moved
  ROOT %back = f32[1,500,2000]{2,1,0} fusion-done(%in)
}
"""
"""As XLA writes copies to the host and, of a stack of layers, one layer's slice back."""


def test_copies_to_and_from_the_host_take_its_link_and_hide_behind_work():
    program = Program.parse(OFFLOADED)
    device = dataclasses.replace(DEVICES["h200"], bandwidth=8e6 / devices.MEMORY_SHARE, host=8e6 / devices.WIRE_SHARE)
    assert [(copy.bytes, copy.times, len(copy.beside)) for copy in host_copies(program)] == [(4e6, 1, 1), (4e6, 1, 0)]
    line = roofline(program, [], device)  # 4 MB each over a link of 8 MB/s; the copy beside the first takes 1 s
    assert (line.wire, line.exposed) == (pytest.approx(1.0), pytest.approx(0.5))
    assert line.compute == pytest.approx(1.0, abs=1e-4), "a stack is not read where it is allocated"


FUSED_SCATTER = """\
HloModule jit_f, is_scheduled=true

%sum (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %add = bf16[] add(%a, %b)
}

%all-reduce-scatter (input: bf16[16,128]) -> bf16[8,128] {
  %input = bf16[16,128]{1,0} parameter(0)
  %whole = bf16[16,128]{1,0} all-reduce(%input), replica_groups={{0,1}}, to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %shard = bf16[8,128]{1,0} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={8,128}
}

ENTRY %main (x: bf16[16,128]) -> bf16[8,128] {
  %x = bf16[16,128]{1,0} parameter(0)
  ROOT %y = bf16[8,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_a_reduce_scatter_that_a_tpu_program_writes_as_a_fusion_counts_as_one():
    (found,) = collectives(Program.parse(FUSED_SCATTER), {"expert": 2})
    assert (found.kind, found.axes, found.total) == ("reduce-scatter", ("expert",), 8 * 128 * 2)
