"""Rules of the layout: imports point downward, files and functions are small, mesh axes are named in one file."""

import ast
import functools
import pathlib

import pytest

from maverick_jax.sharding import MESH_AXES
from train.objectives import OBJECTIVES

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("maverick_jax", "train", "data", "launch", "configs")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))

FILE_LINES, FUNCTION_LINES = 400, 60

FLOORS = {
    "maverick_jax": 0,  # the facade and config, sharding, errors, ...: see FLOOR_ZERO
    "maverick_jax.images": 0,
    "maverick_jax.settings": 0,
    "maverick_jax.text": 0,
    "maverick_jax.ops": 1,
    "maverick_jax.model": 2,
    "maverick_jax.accounting": 3,
    "maverick_jax.checkpoint": 3,
    "maverick_jax.huggingface": 4,
    "maverick_jax.inference": 4,
    "maverick_jax.model_source": 5,
    "maverick_jax.pretrained": 5,
    "maverick_jax.adapter_folder": 6,
    "maverick_jax.merge": 6,
    "maverick_jax.initialization": 6,
    "data": 7,
    "train": 8,
    "launch": 9,
}
FLOOR_ZERO = {
    *("config", "coordinator", "errors", "events", "files", "images", "latent", "network", "param", "parameters"),
    *("precision", "process_identity", "progress", "reasoning", "settings"),
    *("row_split", "saved", "sharding", "stack", "target", "text", "width"),
}
FIELD_TABLE = "data.rows.fields"
"""The table of batch fields, which may be imported by modules that make batches and by modules that learn from them."""
COLLECTIVES = {"psum", "pmax", "pmin", "pmean", "all_gather", "all_to_all", "ppermute", "psum_scatter"}


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    name = module
    while name not in FLOORS:
        name = name.rpartition(".")[0]
    return FLOORS[name]


def imports_of(tree: ast.AST) -> set[str]:
    """Modules of this project that a file imports, anywhere in it. `from a import b` counts as `a` and, if it is a
    module, `a.b`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {m if _exists(m) else node.module or "" for m in modules}
    return {m for m in found if m.partition(".")[0] in PACKAGES}


def _exists(module: str) -> bool:
    path = ROOT / pathlib.Path(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


def trees() -> list[tuple[pathlib.Path, ast.Module]]:
    return [(path, tree_of(path)) for path in SOURCES]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    module = module_of(path)
    if module in ("maverick_jax", "configs"):
        return  # the facade gathers what users import; configs hold YAML
    upward = [i for i in imports_of(tree_of(path)) if floor_of(i) > floor_of(module)]
    assert upward == []


def test_imports_have_no_cycles():
    graph = {module_of(path): imports_of(tree) - {module_of(path)} for path, tree in trees()}
    assert [sorted(circle) for circle in circles(graph)] == []


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"a", "e"}}
    assert sorted(map(sorted, circles(graph))) == [["b", "c"], ["e", "f"]]


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components of more than one module."""
    reachable = {start: _reachable(graph, start) for start in graph}
    components = {frozenset(m for m in reachable[start] if start in reachable[m]) for start in graph}
    return [set(component) for component in components if len(component) > 1]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found, todo = {start}, [start]
    while todo:
        new = (graph[todo.pop()] & graph.keys()) - found
        found |= new
        todo += new
    return found


def test_floor_zero_matches_its_list():
    on_zero = {module_of(p).split(".")[1] for p in SOURCES if module_of(p).startswith("maverick_jax.")}
    upper = {name.split(".")[1] for name in FLOORS if name.startswith("maverick_jax.") and FLOORS[name] > 0}
    assert on_zero - upper <= FLOOR_ZERO


def test_data_knows_nothing_of_models_and_no_module_of_train_imports_both():
    for path, tree in trees():
        module, imported = module_of(path), imports_of(tree)
        if module.startswith("data"):
            assert {i for i in imported if floor_of(i) > 0 and not i.startswith("data")} == set(), path
        elif module.startswith("train"):
            imported -= {FIELD_TABLE}
            floors = {i.partition(".")[0] if i.startswith("data") else ".".join(i.split(".")[:2]) for i in imported}
            assert not {"data", "maverick_jax.model"} <= floors, path


def test_only_ops_communicate():
    calls = []
    for path, tree in trees():
        if not module_of(path).startswith("maverick_jax.ops."):
            called = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
            calls += [f"{path}:{node.lineno}: {name}" for node in called if (name := _name(node.func)) in COLLECTIVES]
    assert calls == []


def test_only_objectives_check_the_kind_of_an_objective():
    kinds = {kind.__name__ for kind in OBJECTIVES.members.values()} | {"NextToken"}
    asked = []
    for path, tree in trees():
        if not module_of(path).startswith("train.objectives"):
            called = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and _name(n.func) == "isinstance")
            asked += [f"{path}:{n.lineno}" for n in called if kinds & {_name(x) for x in ast.walk(n.args[1])}]
    assert len(kinds) > 3 and asked == []


def test_the_base_of_objectives_imports_none_of_them():
    base = imports_of(ast.parse((ROOT / "train/objectives/base.py").read_text()))
    assert {i for i in base if i.startswith("train")} == {"train.rollouts.source"}


def test_files_and_functions_stay_small():
    long = []
    for path, tree in trees():
        if (lines := path.read_text().count("\n")) > FILE_LINES:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {length} lines")
    assert long == []


def test_mesh_axes_are_named_in_one_file_only():
    """Only sharding.py names mesh axes such as `fsdp`; other files use logical axes. Words with other meanings (`data`,
    `context`, `expert`) count only in a PartitionSpec or a collective."""
    only_axes = {"fsdp", "pipeline", "tensor"}
    takers = {"PartitionSpec", "P", "psum", "pmax", "pmean", "all_gather", "all_to_all", "axis_index", "axis_size"}
    named = []
    for path, tree in trees():
        if module_of(path) in ("maverick_jax.sharding", "maverick_jax.huggingface.compressed_tensors"):
            continue  # the latter's `tensor` is a word of the files it reads
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in only_axes:
                named.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}")
            if isinstance(node, ast.Call) and _name(node.func) in takers:
                inside = [c for a in node.args for c in ast.walk(a) if isinstance(c, ast.Constant)]
                named += [f"{path.relative_to(ROOT)}:{c.lineno}: {c.value!r}" for c in inside if c.value in MESH_AXES]
    assert named == []


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_every_module_has_a_docstring():
    silent = [str(p.relative_to(ROOT)) for p, tree in trees() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_no_code_or_pickle_from_data():
    """Data cannot run code: no pickle, no eval, and no import of a module that a file names."""
    forbidden = {"eval", "exec", "import_module", "__import__", "Unpickler"}
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                found += [
                    f"{path}:{node.lineno}" for n in names if n.partition(".")[0] in ("pickle", "dill", "marshal")
                ]
            elif (
                isinstance(node, ast.Call)
                and _name(node.func) in forbidden
                and not isinstance(node.func, ast.Attribute)
            ):
                found.append(f"{path}:{node.lineno}: {_name(node.func)}")
    assert found == []
