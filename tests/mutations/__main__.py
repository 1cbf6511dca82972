"""`python -m tests.mutations [ID ...]`: makes each mistake of the table in a copy of the tree, and runs its tests.

Prints a line for each mutation: killed if a test failed, survived if all passed. Exits with 1 unless all were killed.
The tests must pass without mutations. Files that Git ignores are not copied.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from tests.mutations.table import MUTATIONS, ROOT, Mutation

OUTCOMES = {0: "survived", 1: "killed"}
"""By pytest's exit status. Any other means that it ran no test."""


def main(ids: list[str]) -> int:
    """The exit status of running the mutations `ids`, or all of them if there are none."""
    by_id = {mutation.id: mutation for mutation in MUTATIONS}
    if unknown := [i for i in ids if i not in by_id]:
        print(f"{', '.join(unknown)}: no such mutation; expected some of {', '.join(by_id)}", file=sys.stderr)
        return 2
    chosen = [by_id[i] for i in ids] or list(MUTATIONS)
    if problems := [problem for mutation in chosen for problem in mutation.problems()]:
        print(*problems, sep="\n", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = copy_tree(pathlib.Path(folder) / "tree")
        outcomes = [run(mutation, tree) for mutation in chosen]
    killed = outcomes.count("killed")
    print(f"{killed} of {len(chosen)} killed", flush=True)
    return int(killed < len(chosen))


def copy_tree(target: pathlib.Path) -> pathlib.Path:
    """A copy of the files that Git does not ignore; it shares the cache of compiled programs."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    if (ROOT / ".cache").is_dir():
        (target / ".cache").symlink_to(ROOT / ".cache")
    return target


def run(mutation: Mutation, tree: pathlib.Path) -> str:
    """The outcome of the mutation's tests in `tree`, which is restored afterwards."""
    path, begun = tree / mutation.file, time.monotonic()
    original = path.read_text()
    path.write_text(original.replace(mutation.old, mutation.new))
    # bytecode is told apart by seconds and size, which a mutation may leave as they are
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-m", "slow or not slow", *mutation.tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(original)
    outcome = OUTCOMES.get(done.returncode, f"not run ({done.returncode})")
    seconds = time.monotonic() - begun
    print(f"{mutation.id}\t{outcome}\t{seconds:.0f} s\t{mutation.file}: {mutation.what}", flush=True)
    if outcome not in OUTCOMES.values():
        print(done.stdout[-3000:], done.stderr[-3000:], flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
