"""The gate that a command's arguments ask for."""

import argparse

from data.guard import Gate
from data.policy import read_policy
from maverick_jax.errors import InputError


def gate_of(args: argparse.Namespace) -> Gate | None:
    """The gate that `--policy` and `--risk-model` ask for."""
    if args.policy is None:
        if args.risk_model is not None:
            raise InputError("--risk-model: only with --policy, which says what each tool may do")
        return None
    policy = read_policy(args.policy)
    if args.risk_model is None:
        return Gate(policy)
    from train.guards import RiskHead

    return Gate(policy, [RiskHead(args.risk_model, args.dialect)])
