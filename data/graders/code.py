"""Programs in replies, and tests on them in a sandbox."""

import ast
import builtins
import re
from collections.abc import Collection

from data.graders.base import Grade, binary, shown
from data.sandbox.run import ProgramTests, check

_FENCED = re.compile(r"^```[ \t]*([\w+-]*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_OPEN = re.compile(r"^```[ \t]*[\w+-]*[^\n]*\n(.*)", re.MULTILINE | re.DOTALL)
_ENDS = re.compile(r"\n(?=[^\s#)\]}])|\n```")
LANGUAGES = ("", "python", "py", "python3")
MAX_PROGRAM = 1 << 20


def program_in(reply: str, wanted: Collection[str] = ()) -> str | None:
    """The program in a reply: the last fenced block that defines all of `wanted`, or else the last one; a block that
    is not closed counts; without any block, the whole reply, if it is Python that defines one of `wanted`."""
    blocks = [
        block for language, block in _FENCED.findall(reply) if language.lower() in ("", "python", "py", "python3")
    ]
    if not blocks:
        blocks = _OPEN.findall(reply)
    defining = [block for block in blocks if defined(block) >= set(wanted)]
    if blocks:
        return (defining or blocks)[-1]
    return reply if defined(reply) & set(wanted) else None


def body_in(continuation: str) -> str:
    """The part of a continuation that belongs to the function it continues: up to the first line that is not indented,
    such as the next function."""
    return _ENDS.split(continuation, maxsplit=1)[0]


def defined(text: str) -> set[str]:
    """Names of the functions and classes at the top of a program; none if it cannot be parsed."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


def free_names(text: str, replaced: Collection[str] = ()) -> set[str]:
    """Names that a program uses and neither defines nor has from Python, `replaced` aside. Raises SyntaxError."""
    used, bound = set[str](), set(dir(builtins)) - set(replaced)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            bound.add(node.name)
    return used - bound


def grade_program(program: str | None, tests: ProgramTests, reply: str) -> Grade:
    """Score 1 if the program passes the tests."""
    if program is None or not program.strip():
        return Grade(0.0, f"no program in {shown(reply)}", answered=False)
    if len(program) > MAX_PROGRAM:
        return Grade(0.0, f"a program of more than {MAX_PROGRAM:,} characters")
    verdict = check(program, tests)
    return binary(verdict.passed, verdict.reason)
