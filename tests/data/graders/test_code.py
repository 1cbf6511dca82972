"""Programs in replies."""

from data.graders.code import body_in, defined, free_names, program_in


def test_the_program_of_a_reply():
    two = "First:\n```python\nx = 1\n```\nThen\n```py\ndef f():\n    pass\n```\nDone."
    assert program_in(two, ["f"]) == "def f():\n    pass\n" and program_in(two, ["g"]) == "def f():\n    pass\n"
    assert program_in("```js\nvar x\n```\n```\ny = 2\n```") == "y = 2\n"
    assert program_in("```python\ndef f(): return 1", ["f"]) == "def f(): return 1"
    assert program_in("def f(): return 1", ["f"]) == "def f(): return 1" and program_in("I cannot.", ["f"]) is None


def test_the_body_of_a_continuation_ends_with_its_function():
    body = "    if x:\n        return 1\n\n    return 2\n"
    assert body_in(f"{body}\n\ndef g():\n    pass") == body + "\n"
    assert body_in(f"{body}```\nmore") == body.removesuffix("\n")


def test_names():
    tests = "import math\nassert f(g(2), x=len([y for y in h])) == math.pi"
    assert free_names(tests) == {"f", "g", "h"} and free_names("assert sum(1)", {"sum"}) == {"sum"}
    assert defined("def f(): pass\nclass G: pass\nx = 1") == {"f", "G"} and defined("def f(:") == set()
