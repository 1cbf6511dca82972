"""Runs the program, and answers the calls of the tests. Arguments: the files to read calls from and to write answers
to, as numbers, and the limits."""

import itertools
import os
import runpy
import sys
import types

sys.path.insert(0, "/box")

import limits
import wire

MAX_ITEMS = 100_000


def main(read_from, write_to):
    kept = []

    def keep(value):
        kept.append(value)
        return len(kept) - 1

    calls, answers = os.fdopen(read_from, "rb"), os.fdopen(write_to, "wb")
    try:
        names = runpy.run_path("/box/program_text.py", run_name="program")
    except BaseException as error:
        wire.send(answers, {"failed": f"{type(error).__name__}: {error}"[:500]})
        return
    wire.send(answers, {"names": sorted(name for name in names if isinstance(name, str))})
    while (call := wire.receive(calls)) is not None:
        try:
            target = names[call["name"]]
            arguments = [wire.decode(item, kept) for item in call["arguments"]]
            words = {key: wire.decode(item, kept) for key, item in call["words"].items()}
            value = target(*arguments, **words)
            if isinstance(value, (types.GeneratorType, map, filter, zip, enumerate, reversed)):
                answer = {"iterator": [wire.encode(item, keep) for item in itertools.islice(value, MAX_ITEMS)]}
            else:
                answer = {"value": wire.encode(value, keep)}
        except BaseException as error:
            answer = {"raised": type(error).__name__, "said": str(error)[:500]}
        wire.send(answers, answer)


limits.apply(*map(int, sys.argv[3:]))
main(int(sys.argv[1]), int(sys.argv[2]))
