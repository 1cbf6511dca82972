"""Run configs as files: reading and resolving them, and their JSON schema."""

import copy
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from data.config import DataConfig
from data.tasks import TasksConfig
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.parameters import TEXT_ROLES, roles_of
from maverick_jax.settings import plugins, shipped, strict_yaml, validation
from maverick_jax.settings.descriptions import DescribedSchema
from maverick_jax.settings.moved_keys import moved_problems
from maverick_jax.settings.redaction import HIDDEN, redacted
from maverick_jax.settings.strict_yaml import Document, Location, Problem, join
from train.borders import placed, unfit_borders
from train.config import RunConfig, misfits, unfit_start
from train.inherited import Named, take_adapter, take_network, take_tokens
from train.metrics_writer import LoggingConfig
from train.objectives import OBJECTIVES
from train.objectives.aliases import ALIASES, replace_alias
from train.stages import (
    SECTIONS,
    STAGES,
    StageSection,
    chosen,
    given_steps,
    in_stage,
    problems_of_stages,
    stage_document,
)

COMMAND_LINE = Location("command line")
STAGE = "stage"
"""The word of the command line that names a stage."""
MOVED = {
    "optimizer.train": "trainable.parameters",
    "optimizer.experts": "trainable.experts",
    "optimizer.lora": "trainable.lora",
}
"""Keys of earlier versions, and their names today."""

_SECTIONS = {"model": shipped.model_path}
_BASES = ("base", *(f"{section}.base" for section in _SECTIONS))


def read_config(path_or_name: str, overrides: Iterable[str] = (), model: Named | None = None) -> RunConfig:
    """The run config in a file, or shipped under a name, with `overrides` (`optimizer.learning_rate=3e-4`) on top; of a
    config with stages, that of the one that the override `stage=NAME` names.

    model: the model that will be used in the place of the config's; its tokenizer is then the default, not that of
    `model.init_from`. None: the config's.

    Raises InputError with one line per problem: keys that moved, before anything else; unknown keys, wrong types and
    values, and numbers of different sections that do not fit each other.
    """
    config = read_named(path_or_name, overrides, model)
    if isinstance(number := chosen([stage.name for stage in config.stages] or [""], None), str):
        raise InputError(f"{path_or_name}: {number}")
    return config.in_stages[number] if config.stages else config


def read_named(path_or_name: str, overrides: Iterable[str] = (), model: Named | None = None) -> RunConfig:
    """As `read_config`, but without `stage=NAME` that of the whole run."""
    words = list(overrides)
    names = [word.partition("=")[2] for word in words if word.startswith(f"{STAGE}=")]
    config = read_run(path_or_name, [word for word in words if not word.startswith(f"{STAGE}=")], model)
    if not names:
        return config
    if isinstance(number := chosen([stage.name for stage in config.stages], names[-1]), str):
        raise InputError(f"{path_or_name}: {number}")
    return config.in_stages[number]


def read_run(path_or_name: str, overrides: Iterable[str] = (), model: Named | None = None) -> RunConfig:
    """As `read_config`, the config of a whole run: `in_stages` are those of its stages, or itself."""
    document = shipped.read_document(shipped.find(path_or_name, shipped.run_path), shipped.run_path, _SECTIONS)
    document = shipped.on_top(document, _overrides(overrides))
    strict_yaml.raise_problems(moved_problems(document, MOVED) + _hidden(document))
    _load_plugins(document)
    for key in [k for k, place in document.places.items() if place is COMMAND_LINE]:
        while key := key.rpartition(".")[0]:  # sections that only the command line has
            document.places.setdefault(key, COMMAND_LINE)
    for section in _SECTIONS:
        if isinstance(inner := document.data.get(section), dict):
            inner.pop("base", None)
    if document.data.get(STAGES):
        return _in_stages(document, model)
    config, problems = _checked(document, model)
    strict_yaml.raise_problems(problems)
    assert config is not None
    return config


def _checked(document: Document, model: Named | None) -> tuple[RunConfig | None, list[Problem]]:
    """The config of a document, and what is wrong with it."""
    _read_experts(document)
    replace_alias(document)
    take_adapter(document)
    start = take_network(document, read_config)
    take_tokens(document, model or start, read_config)
    config, problems = validation.check(RunConfig, document, also=_BASES)
    if config is None:
        return None, problems
    config = _with_objective_in_run(config, document, problems)
    if not config.stages:
        known = {axis: 1 if size == -1 else size for axis, size in config.mesh.sizes.items()}
        found = misfits(config, known) + unfit_start(config, start and start.config)
        problems += [Problem(_place(document, key, message), key, message) for key, message in found]
    return config, problems


def _in_stages(document: Document, model: Named | None) -> RunConfig:
    """The config of a run with stages."""
    given, place = None, given_steps(document)
    if isinstance(run := document.data.setdefault("run", {}), dict):
        given = run.get("steps") if place is not None else None
        run["steps"] = given or 1  # the sum is known when all stages are
    originals = copy.deepcopy(document)  # what is read fills in what a document leaves out
    whole, problems = _checked(document, model)
    strict_yaml.raise_problems(problems)
    assert whole is not None
    problems = problems_of_stages(originals)
    parts: list[RunConfig] = []
    for number in range(len(whole.stages)):
        inner = stage_document(originals, number)
        part, found = _checked(inner, model)
        problems += [in_stage(number, problem, originals) for problem in found]
        parts += [] if part is None else [part]
    strict_yaml.raise_problems(problems)
    found = unfit_borders([stage.name for stage in whole.stages], parts)
    problems = [in_stage(number, Problem(originals.place(""), key, said), originals) for number, key, said in found]
    parts, places = placed(whole, parts)
    total = places[-1].first + places[-1].steps
    if place is not None and given != total:
        problems.append(
            Problem(place, "run.steps", f"{given}; expected {total}, the sum of the stages, or no such key")
        )
    strict_yaml.raise_problems(problems)
    return whole.divided(parts, places)


def _with_objective_in_run(config: RunConfig, document: Document, problems: list[Problem]) -> RunConfig:
    """The config with what its objective wants where it says nothing: which parameters are trained, and what of the
    objective follows from the rest. Adds a problem to `problems` for an objective that does not fit."""
    objective, trainable, network = config.objective, config.trainable, config.model.network
    if (frozen := objective.frozen()) and trainable.parameters is None and trainable.lora is None:
        there = roles_of(network)
        kept = tuple(role for role in TEXT_ROLES if role in there and role not in frozen)
        trainable = trainable.model_copy(update={"parameters": kept})
    try:
        trained = [role for role in trainable.selection().roles if role in roles_of(network)]
        objective = objective.in_run(config.model.init_from, trained, trainable.lora is not None)
    except InputError as error:
        key = str(error).partition(":")[0]
        problems.append(Problem(_place(document, key, str(error)), key, str(error).removeprefix(f"{key}: ")))
    return config.model_copy(update={"objective": objective, "trainable": trainable})


def _hidden(document: Document) -> list[Problem]:
    """A problem for each value that was a secret before it was saved."""
    found = []
    for key, place in document.places.items():
        value: Any = document.data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str) and HIDDEN in value:
            found.append(Problem(place, key, f"holds {HIDDEN} in the place of a secret; set it again, or unset it"))
    return found


def _place(document: Document, key: str, message: str) -> Location:
    """Where the problem comes from: the command line, if it has one of the keys that the message names."""
    places = [document.places.get(name) for name in (key, *re.findall(r"[a-z_]+\.[a-z_.]+", message))]
    return COMMAND_LINE if COMMAND_LINE in places else document.place(key)


def _load_plugins(document: Document) -> None:
    """Imports the modules that installed packages name and those at `plugins`, so that their kinds are known."""
    loaded = plugins.load_installed()
    key = "plugins"
    try:
        loaded += plugins.load(document.data.get(key) or ())
    except InputError as error:
        raise InputError(f"{document.place(key)}: {error}") from error
    if loaded:
        for section in (DataConfig, TasksConfig, LoggingConfig, RunConfig):
            section.model_rebuild(force=True)


def resolved(config: RunConfig) -> dict[str, Any]:
    """The config as plain data with every default written out. Read again, it gives the same config."""
    return config.model_dump(mode="json")


def public(config: RunConfig) -> dict[str, Any]:
    """As `resolved`, without secrets: what is shown and stored."""
    return redacted(resolved(config))


def _read_experts(document: Document) -> None:
    """Replaces a path at `trainable.experts` by that file's content: a run keeps its choice, not a path."""
    section, key = document.data.get("trainable"), "trainable.experts"
    if not isinstance(section, dict) or not isinstance(path := section.get("experts"), str):
        return
    try:
        found = strict_yaml.read(pathlib.Path(path).expanduser())
        strict_yaml.raise_problems(found.problems)
        if not isinstance(found.data, dict) or not isinstance(found.data.get("experts"), dict):
            raise InputError(f"{path}: holds no mapping `experts`, of layers to lists of experts")
        section["experts"] = found.data["experts"]
    except InputError as error:
        document.problems.append(Problem(document.place(key), key, str(error)))
        section["experts"] = None


def _overrides(overrides: Iterable[str]) -> Document:
    """The command line's `key=value` words as one document."""
    document = Document({}, {}, [])
    for word in overrides:
        key, equals, text = word.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            document.problems.append(Problem(COMMAND_LINE, word, "expected key=value, such as run.steps=100"))
        elif key == "base":
            document.problems.append(Problem(COMMAND_LINE, key, "a config's base is chosen in its file only"))
        else:
            value = strict_yaml.parse_value(text, COMMAND_LINE, key)
            document.problems += value.problems
            document.places |= {join(key, inner).rstrip("."): place for inner, place in value.places.items()}
            _assign(document.data, parts, value.data)
    return shipped.expand_sections(document, _SECTIONS, beside=pathlib.Path())


def _assign(data: dict, parts: list[str], value: Any) -> None:
    for i, part in enumerate(parts[:-1]):
        inner = data.get(part)
        if isinstance(inner, str) and i == 0 and part in _SECTIONS:
            inner = {"base": inner}
        data[part] = data = inner if isinstance(inner, dict) else {}
    data[parts[-1]] = shipped.Whole(value) if isinstance(value, dict) else value


def schema() -> dict[str, Any]:
    """JSON schema of a run config's file, for editors and other programs: `base`, partial sections and all."""
    found = RunConfig.model_json_schema(schema_generator=DescribedSchema)
    for section in (found, *found["$defs"].values()):
        section.pop("required", None)  # a base may give it
    sources = found["$defs"]["DataConfig"]["properties"]["sources"]
    unions = (found["properties"]["objective"], found["properties"]["optimizer"], sources["additionalProperties"])
    for union in unions:
        union["anyOf"] = union.pop("oneOf")  # a partial section may be of any kind: its base gives the kind
    sources["additionalProperties"]["anyOf"].append({"type": "null"})  # removes one of the base
    _add_aliases(found)
    stage = found["$defs"][StageSection.__name__]["properties"]
    for section in SECTIONS:
        stage[section] = found["properties"][section] | {"description": stage[section].get("description", "")}
    base = {"type": "string", "description": "A shipped name, or a path relative to this file, to build on."}
    found["properties"] = {"base": base, **found["properties"]}
    model = found["$defs"]["ModelSection"]
    model["properties"] = {"base": base, **model["properties"]}
    without = {
        key: value for key, value in model["properties"].items() if key in ModelConfig.model_fields or key == "base"
    }
    found["$defs"]["ModelConfig"] = {**model, "title": "ModelConfig", "properties": without}  # configs/model/*.yaml
    tokenizer = found["$defs"]["DataConfig"]["properties"]["tokenizer"]
    tokenizer["anyOf"] = [{"type": tokenizer.pop("type"), "minLength": tokenizer.pop("minLength")}, {"type": "null"}]
    experts = found["$defs"]["TrainableConfig"]["properties"]["experts"]
    experts["anyOf"].append({"type": "string", "description": "A file that `maverick data experts` made."})
    named = {"type": "string", "description": "A shipped model's name.", "examples": shipped.model_names()}
    found["properties"]["model"] = {"anyOf": [named, found["properties"]["model"]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _add_aliases(found: dict[str, Any]) -> None:
    """Allows the other names of objective kinds, and a kind alone in place of the section."""
    for alias, kind in ALIASES.items():
        for section in found["$defs"].values():
            if section.get("properties", {}).get("kind", {}).get("const") == kind:
                section["properties"]["kind"].pop("const")
                section["properties"]["kind"]["enum"] = [kind, alias]
    names = {"type": "string", "enum": [*OBJECTIVES.members, *ALIASES], "description": "The kind alone."}
    found["properties"]["objective"]["anyOf"].append(names)
