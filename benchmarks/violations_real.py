#!/usr/bin/env python
"""Violations of a policy in runs that succeeded and in runs that failed. A rule that successful runs break
as often says nothing of what is wrong.

    python benchmarks/violations_real.py RUNS [--policy FILE] [--show N]

RUNS are trajectories with outcomes, by default judged by the rules of tau-bench's airline. `--show` prints the first N
violations of successful runs with their evidence, to be read. The last line is JSON.
"""

import argparse
import json
import pathlib
import sys
from collections import Counter

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from data.policy import PolicyRule, find_violations, read_policy
from data.preferences.outcomes import succeeded
from data.trajectories import read_trajectories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("--policy", default=str(pathlib.Path(__file__).parent / "tau_airline_policy.yaml"))
    parser.add_argument("--show", type=int, default=0)
    args = parser.parse_args()
    policy, counts, shown = read_policy(args.policy), Counter[str](), 0
    for run in read_trajectories(args.runs):
        outcome = {True: "succeeded", False: "failed", None: "unknown"}[succeeded(run.outcome)]
        found = find_violations(run, policy)
        counts[outcome] += 1
        counts.update(f"{rule} {outcome}" for rule in {violation.rule for violation in found})
        for violation in found if outcome == "succeeded" else ():
            if (shown := shown + 1) <= args.show:
                print(f"{run.provenance.task}: message {violation.step}, {violation.tool}: {violation.evidence}")
    for rule in PolicyRule:
        print(rule, *(f"{o} {counts[f'{rule} {o}']} of {counts[o]};" for o in ("succeeded", "failed")))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
