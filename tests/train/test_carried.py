"""Which parts of a state go over a border between stages, by the names of arrays alone."""

import types

import jax
import jax.numpy as jnp
import pytest

from train.carried import _by_rank, _found_in

F32 = jax.ShapeDtypeStruct((2,), jnp.float32)
ADAM = ("opt_state/1/count", "opt_state/1/mu/norm", "opt_state/3/count")
UNCLIPPED = ("opt_state/0/count", "opt_state/0/mu/norm", "opt_state/2/count")
AVERAGE = "opt_state/4/average/norm"


def config(optimizer="adamw", objective="pretrain"):
    kind = lambda name: types.SimpleNamespace(kind=name)
    return types.SimpleNamespace(optimizer=kind(optimizer), objective=kind(objective))


def saved(*names, shape=(2,), optimizer="adamw", objective="pretrain") -> dict:
    arrays = {
        name: {"shape": list(shape), "dtype": "float32", "checksum": "x"} for name in ("step", "model/norm", *names)
    }
    return {"arrays": arrays, "optimizer": {"kind": optimizer}, "objective": {"kind": objective}}


def wanted(*names) -> dict:
    return dict.fromkeys(("step", "model/norm", *names), F32)


def test_the_same_arrays_go_over():
    there, why = _found_in(saved(*ADAM, "heads/x"), wanted(*ADAM, "heads/x"), config())
    assert there == {name: name for name in ("step", "model/norm", *ADAM, "heads/x")} and why == []


def test_clipping_that_begins_or_ends_keeps_the_moments():
    there, why = _found_in(saved(*ADAM), wanted(*UNCLIPPED), config())
    assert {name: there[name] for name in UNCLIPPED} == dict(zip(UNCLIPPED, ADAM, strict=True)) and why == []
    assert _by_rank([*ADAM, AVERAGE])[AVERAGE] == "opt_state/2/average/norm"


def test_moments_go_over_if_all_that_are_needed_are_there():
    more = ("opt_state/1/mu/embed",)
    there, why = _found_in(saved(*ADAM, *more), wanted(*ADAM), config())
    assert set(ADAM) <= set(there) and why == []
    there, why = _found_in(saved(*ADAM), wanted(*ADAM, *more), config())
    assert not set(ADAM) & set(there)
    assert why == ["moments of the optimizer: begin anew, because they are of other arrays than in the stage before"]


@pytest.mark.parametrize(
    ("meta", "here", "names", "said"),
    [
        (saved(*ADAM), config(optimizer="muon"), ADAM, "moments of the optimizer: begin anew, because the kind was"),
        (saved("objective/x"), config(objective="distill"), ("objective/x",), "scalars of the objective: begin anew, "),
        (saved("heads/lora/q/a", shape=(3,)), config(), ("heads/lora/q/a",), "adapters: begin anew, because they"),
        (saved(*ADAM), config(), (*ADAM, AVERAGE), "averages: begin anew"),
        (saved(), config(), ("heads/value",), "objective heads: begin anew"),
    ],
)  # fmt: skip
def test_a_part_that_begins_anew_is_said(meta, here, names, said):
    there, why = _found_in(meta, wanted(*names), here)
    assert len(why) == 1 and why[0].startswith(said)
    assert set(there) == {"step", "model/norm", *(ADAM if AVERAGE in names else ())}


def test_a_part_that_nobody_needs_is_not_spoken_of():
    assert _found_in(saved(*ADAM, "heads/x", "objective/y"), wanted(), config(optimizer="muon"))[1] == []
