#!/usr/bin/env python
"""Run benchmarks, store each result in `results/NAME.json`, and render the tables in docs/results/benchmarks.md.

    python benchmarks/run_all.py [NAME ...] [--maxtext-python PATH]

For reliable figures the machine must be otherwise idle.
"""

import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.render import RESULTS, render_page
from maverick_jax.errors import InputError, MaverickError
from maverick_jax.settings.section import did_you_mean

RUNS = {
    "tiny_transformers": ["train_step.py", "--shape", "tiny", "--against", "transformers"],
    "tiny_transformers_bfloat16": [
        "train_step.py",
        "--shape",
        "tiny",
        "--against",
        "transformers",
        "--dtype",
        "bfloat16",
    ],
    "tiny_packed": ["train_step.py", "--shape", "tiny", "--against", "none", "--packed"],
    "tiny_remat_full": ["train_step.py", "--shape", "tiny", "--against", "none", "--remat", "full"],
    "big_transformers": ["train_step.py", "--shape", "big", "--against", "transformers"],
    "compile_time": ["compile_time.py"],
    "host_overhead": ["host_overhead.py"],
    "grouped_product": ["grouped_product.py"],
    "images": ["images.py"],
    "picture_pipeline": ["picture_pipeline.py"],
    "tokenization": ["tokenization.py"],
    "import": ["interchange.py", "import"],
    "export": ["interchange.py", "export"],
    "distillation": ["distillation.py"],
    "engine_tiny": ["engine.py", "--shape", "tiny"],
    "engine_big": ["engine.py", "--shape", "big"],
}
MAXTEXT_RUNS = {
    "tiny_maxtext": ["train_step.py", "--shape", "tiny", "--against", "maxtext"],
    "big_maxtext": ["train_step.py", "--shape", "big", "--against", "maxtext"],
}


def choose(names: list[str], maxtext_python: str | None) -> dict[str, list[str]]:
    """Name -> command of the chosen benchmarks. Raises InputError for an unknown name."""
    known = RUNS
    if maxtext_python:
        known = RUNS | {name: [*command, "--maxtext-python", maxtext_python] for name, command in MAXTEXT_RUNS.items()}
    for name in names:
        if name in MAXTEXT_RUNS and name not in known:
            raise InputError(f"{name} needs --maxtext-python PATH")
        if name not in known:
            raise InputError(f"no benchmark {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
    return {name: known[name] for name in names or known}


def run(name: str, command: list[str]) -> bool:
    """Run a benchmark; returns whether it succeeded. Only then its result replaces the previous one."""
    print(f"== {name}: {' '.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:], "--json"], stdout=subprocess.PIPE)
    if done.returncode:
        print(f"{name} failed with code {done.returncode}; its previous result, if any, is kept", file=sys.stderr)
        return False
    result = json.loads(done.stdout.splitlines()[-1])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"default: all of {', '.join(RUNS)}")
    parser.add_argument("--maxtext-python", metavar="PATH", help="the interpreter of an environment with MaxText")
    args = parser.parse_args()
    try:
        wanted = choose(args.names, args.maxtext_python)
    except MaverickError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    succeeded = [run(name, command) for name, command in wanted.items()]
    render_page()
    return 0 if all(succeeded) else 1


if __name__ == "__main__":
    sys.exit(main())
