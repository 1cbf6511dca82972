"""Runs the tests, with the program's functions in reach, and writes the verdict. Arguments: the files to write calls to
and to read answers from, as numbers. The verdict is the only line of the standard output, after the nonce that came as
the first line of the standard input."""

import builtins
import json
import os
import runpy
import sys

sys.path.insert(0, "/box")

import limits
import wire


class Broken(Exception):
    """The program no longer answers as it should."""


class RemoteProgram:
    """The program in the other sandbox."""

    def __init__(self, write_to, read_from):
        self.calls, self.answers, self.kept = os.fdopen(write_to, "wb"), os.fdopen(read_from, "rb"), []

    def hello(self):
        """The names that the program defines."""
        found = self._receive()
        if "failed" in found:
            raise Broken(f"the program does not run: {str(found['failed'])[:500]}")
        names = found.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Broken("the program's answer is not one")
        return names

    def call(self, name, arguments, words):
        encode = lambda value: wire.encode(value, self._keep)
        words = {key: encode(value) for key, value in words.items()}
        try:
            wire.send(self.calls, {"name": name, "arguments": [*map(encode, arguments)], "words": words})
        except OSError:
            raise Broken("the program ended before the tests did") from None
        answer = self._receive()
        if "raised" in answer:
            raise _exception(answer)
        try:
            if "iterator" in answer:
                return iter([wire.decode(item, self.kept) for item in answer["iterator"]])
            return wire.decode(answer["value"], self.kept)
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
            raise Broken(f"the program's answer is not one: {type(error).__name__}") from None

    def _keep(self, value):
        self.kept.append(value)
        raise TypeError(f"a {type(value).__name__} cannot be passed to the program")

    def _receive(self):
        try:
            found = wire.receive(self.answers)
        except (ValueError, RecursionError, OSError):
            raise Broken("the program's answer is not one") from None
        if found is None:
            raise Broken("the program ended before the tests did")
        if not isinstance(found, dict):
            raise Broken("the program's answer is not one")
        return found


def _exception(answer):
    kind = getattr(builtins, str(answer["raised"]), None)
    said = str(answer.get("said"))[:500]
    try:
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind(said)
    except Exception:  # some take other arguments than a text
        pass
    return RuntimeError(f"{answer['raised']}: {said}"[:500])


class Function:
    """One of the program's functions, as the tests call it."""

    def __init__(self, program, name):
        self._program, self.__name__ = program, name

    def __call__(self, *arguments, **words):
        return self._program.call(self.__name__, arguments, words)


def verdict(program, wanted):
    try:
        names = program.hello()
        missing = [name for name in wanted["must_have"] if name not in names]
        if missing:
            return f"the program defines no {missing[0]}"
        given = {alias: Function(program, name) for alias, name in wanted["functions"].items() if name in names}
        runpy.run_path("/box/tests_text.py", init_globals=given, run_name="tests")
    except Broken as error:
        return str(error)
    except AssertionError as error:
        return f"a test fails{': ' if str(error) else ''}{str(error)[:300]}"
    except BaseException as error:
        return f"a test fails: {type(error).__name__}: {str(error)[:300]}"
    return ""


def main(write_to, read_from):
    nonce = sys.stdin.readline().strip()
    wanted = json.loads(sys.stdin.readline())
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tests print is no verdict
    problem = verdict(RemoteProgram(write_to, read_from), wanted)
    said.write(json.dumps({"nonce": nonce, "passed": not problem, "problem": problem}) + "\n")
    said.flush()


limits.apply(*map(int, sys.argv[3:]))
main(int(sys.argv[1]), int(sys.argv[2]))
