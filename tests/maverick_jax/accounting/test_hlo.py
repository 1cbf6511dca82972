"""Programs are read as XLA prints them."""

import jax
import jax.numpy as jnp
import pytest

from maverick_jax.accounting.compiled import flops
from maverick_jax.accounting.hlo import Program, arrays_of, bytes_in_memory, bytes_of

TEXT = """\
HloModule jit_f, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%turn (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %y = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%sum, metadata={op_name="jit(f)/mlp/psum"}
  ROOT %next = (s32[], f32[8]{0}) tuple(%n, %y)
}

%until (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]{0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%until, body=%turn, backend_config={"known_trip_count":{"n":"3"}}
  %again = (s32[], f32[8]{0}) while(%loop), condition=%until, body=%turn, metadata={op_name="jit(f)/while"}
  ROOT %out = f32[8]{0} get-tuple-element(%again), index=1
}
"""


def test_loops_multiply_what_they_run():
    program = Program.parse(TEXT)
    assert program.runs == {"main": 1, "turn": 3 + 1, "until": 3 + 1}
    assert program.dynamic == {"turn", "until"}


def test_the_caller_says_how_often_a_loop_of_unknown_count_turns():
    assert Program.parse(TEXT, lambda loop: 5 if loop.op_name == "jit(f)/while" else 0).runs["turn"] == 3 + 5


def test_a_loop_below_a_constant_turns_that_often():
    """TPU programs write no counts."""
    condition = """  %n.1 = s32[] get-tuple-element(%state.1), index=0
  %twelve = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%n.1, %twelve), direction=LT"""
    text = TEXT.replace("  ROOT %less = pred[] constant(true)", condition)
    program = Program.parse(text)
    assert program.runs["turn"] == 3 + 12 and not program.dynamic


def test_instructions_name_their_operands_and_scopes():
    turn = Program.parse(TEXT).computations["turn"]
    reduce = turn.by_name["y"]
    assert (reduce.opcode, reduce.operands, reduce.op_name) == ("all-reduce", ("x",), "jit(f)/mlp/psum")
    assert [i.name for i in turn.operands(reduce)] == ["x"] and turn.root.name == "next"


@pytest.mark.parametrize(
    ("text", "size"),
    [("f32[8,4]{1,0}", 128), ("(bf16[3], s32[2]{0}, pred[])", 6 + 8 + 1), ("f8e4m3fn[16]", 16), ("token[]", 0),
     ("u4[16]", 8)],
)  # fmt: skip
def test_bytes_of_types(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [("f32[8,4]{1,0:T(8,128)S(1)}", 0), ("(bf16[3]{0:T(256)S(1)}, s32[2]{0:T(128)})", 8), ("f32[8,4]{1,0:S(1)}", 128),
     ("f32[8,4]{1,0:T(8,128)}", 128)],
)  # fmt: skip
def test_bytes_in_a_tpu_cores_own_memory_are_left_out(text, size):
    assert bytes_in_memory(text) == size


def test_shapes_of_types():
    assert arrays_of("(f32[8,4]{1,0}, /*index=1*/bf16[])") == [("f32", (8, 4)), ("bf16", ())]


def test_text_without_a_program_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        Program.parse("HloModule empty")


def test_a_compiled_scan_runs_its_body_as_often_as_it_says():
    def f(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, length=7)[0]

    program = Program.parse(jax.jit(f).lower(jnp.ones((8, 8))).compile().as_text())
    assert 7 in program.runs.values() and not program.dynamic


BRANCHES = """\
HloModule jit_g, is_scheduled=true

%seen (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %b = f32[8]{0} negate(%a)
}

%skipped (c: f32[8]) -> f32[8] {
  ROOT %c = f32[8]{0} parameter(0)
}

ENTRY %main (p: pred[], x: f32[8]) -> f32[8] {
  %p = pred[] parameter(0)
  %x = f32[8]{0} parameter(1)
  ROOT %y = f32[8]{0} conditional(%p, %x, %x), BRANCHES, metadata={op_name="jit(g)/cond"}
}
"""


@pytest.mark.parametrize(
    "branches", ["true_computation=%seen, false_computation=%skipped", "branch_computations={%skipped, %seen}"]
)
def test_branches_run_as_often_as_their_condition_holds(branches):
    text = BRANCHES.replace("BRANCHES", branches)
    share = lambda conditional: 0.25 if conditional.op_name == "jit(g)/cond" else None
    assert Program.parse(text, shares=share).runs == {"main": 1, "seen": 0.25, "skipped": 0.75}
    assert Program.parse(text).runs == {"main": 1, "seen": 1, "skipped": 1}, "without a share, each counts"


def test_a_compiled_conditional_has_the_branch_of_its_true_condition_where_it_is_looked_for():
    def f(p, x):
        return jax.lax.cond(p, lambda x: x @ x, lambda x: x, x)

    text = jax.jit(f).lower(True, jnp.ones((8, 8))).compile().as_text()
    program = Program.parse(text, shares=lambda conditional: 0.0)
    ran = [i.opcode for computation, times in program.scheduled() if times for i in computation.instructions]
    assert "conditional" in ran and "dot" not in ran
    always = Program.parse(text, shares=lambda conditional: 1.0)
    assert flops(program) == 0 and flops(always) == 2 * 8**3
