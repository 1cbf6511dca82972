"""No two product classes share a name, so that a name in a trace or a search means one thing."""

import ast
import collections
import pathlib

REPOSITORY = pathlib.Path(__file__).parent.parent


def test_no_two_product_classes_share_a_name():
    """Leading underscores do not make a name different."""
    places = collections.defaultdict(list)
    for package in ("maverick_jax", "data", "train", "launch"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places[node.name.lstrip("_")].append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert len(places) > 200, "the product's classes were not found"
    shared = {name: found for name, found in places.items() if len(found) > 1}
    assert not shared, "\n".join(f"{name}: {', '.join(found)}" for name, found in sorted(shared.items()))
