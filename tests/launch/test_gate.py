"""The gate that a command's arguments ask for."""

import argparse

import pytest

from launch.gate import gate_of
from maverick_jax.errors import InputError


def of(policy, risk_model=None):
    return gate_of(argparse.Namespace(policy=policy, risk_model=risk_model, dialect=None))


def test_a_policy_asks_for_a_gate():
    assert of(None) is None
    found = of("package:toy_shop_policy")
    assert found is not None and "refund_order" in found.policy.tools


def test_a_risk_model_needs_a_policy_and_a_policy_a_file():
    with pytest.raises(InputError, match="only with --policy"):
        of(None, "somewhere")
    with pytest.raises(InputError, match="no such file"):
        of("nowhere.yaml")
