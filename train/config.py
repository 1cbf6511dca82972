"""The config of a run: its sections, how it is read, and the checks that need more than one section."""

import pathlib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field

from data.config import DataConfig
from maverick_jax.accounting.devices import Hardware
from maverick_jax.checkpoint.store import CheckpointConfig
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.initialization.layer_map import Start, findings
from maverick_jax.network import Purpose
from maverick_jax.settings import shipped, strict_yaml, validation
from maverick_jax.settings.section import Section
from maverick_jax.settings.strict_yaml import Document, Location, Problem, join
from maverick_jax.sharding import MeshConfig, ShardingRules, axes_tuple, size_of
from train.metrics_writer import LoggingConfig
from train.objectives import Objective, Pretrain
from train.optimizers.config import OptimizerConfig

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]

COMMAND_LINE = Location("command line")
_SECTIONS = {"model": shipped.model_path}
_BASES = ("base", *(f"{section}.base" for section in _SECTIONS))


class RunSection(Section):
    """What the run is called, how long it is, and where it keeps what it makes."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Letters, digits, `.`, `_` and `-`."""
    dir: str | None = None
    """Everything the run makes. null: `runs/<name>`."""
    steps: Positive
    """Optimizer steps in the whole run."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the initial weights and, unless `data.seed` is given, of the order of the data."""
    eval_every: Natural = 0
    """Steps between evaluations on held-out data; 0: none."""
    eval_batches: Positive = 8
    """Batches of one evaluation."""
    skip_budget: Natural = 10
    """Updates that may be refused because loss or gradients were not finite; one more ends the run (exit code 79)."""
    hardware: Hardware | None = None
    """The device the run is meant for, such as `h200`: `maverick plan` judges by it. null: this machine's."""

    @property
    def directory(self) -> pathlib.Path:
        return pathlib.Path(self.dir or f"runs/{self.name}")


class ModelSection(ModelConfig):
    """The network, and where its first weights come from."""

    init_from: str | None = None
    """A run directory, one of its checkpoints or a Hugging Face folder whose weights the run starts from; what is not
    given here of the network is taken from there. null: random weights."""
    init_layers: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = None
    """The layers of the model at `init_from`, from 0, that the layers of this one begin as, in order; a layer may be
    taken twice. null: all, in order."""
    init_upcycle: bool = False
    """Whether a mixture of experts may begin as a dense layer: its shared expert is that layer, its routed experts add
    nothing yet."""

    @property
    def start(self) -> Start | None:
        """Where the first weights come from; None: nowhere."""
        return None if self.init_from is None else Start(self.init_from, self.init_layers, self.init_upcycle)

    @property
    def network(self) -> ModelConfig:
        return ModelConfig.model_construct(**{key: getattr(self, key) for key in ModelConfig.model_fields})


class RunConfig(Section):
    """Everything a run depends on."""

    run: RunSection
    model: ModelSection
    mesh: MeshConfig = MeshConfig()
    data: DataConfig
    objective: Objective = Pretrain()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()


# ---- reading -------------------------------------------------------------------------------------------------------


def read_config(path_or_name: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The run config in a file, or shipped under a name, with `overrides` (`optimizer.learning_rate=3e-4`) on top.

    Raises InputError with one line per problem: unknown keys, wrong types and values, and numbers of different
    sections that do not fit each other.
    """
    document = shipped.read_document(shipped.find(path_or_name, shipped.run_path), shipped.run_path, _SECTIONS)
    document = shipped.on_top(document, _overrides(overrides))
    for key in [k for k, place in document.places.items() if place is COMMAND_LINE]:
        while key := key.rpartition(".")[0]:  # sections that only the command line has
            document.places.setdefault(key, COMMAND_LINE)
    for section in _SECTIONS:
        if isinstance(inner := document.data.get(section), dict):
            inner.pop("base", None)
    _read_experts(document)
    source = _start(document)
    config, problems = validation.check(RunConfig, document, also=_BASES)
    if config is not None:
        known = {axis: 1 if size == -1 else size for axis, size in config.mesh.sizes.items()}
        found = _misfits(config, known) + _unfit_start(config.model, source)
        problems += [Problem(document.place(key), key, message) for key, message in found]
    strict_yaml.raise_problems(problems)
    assert config is not None
    return config


def resolved(config: RunConfig) -> dict[str, Any]:
    """The config as plain data with every default written out. Read again, it gives the same config."""
    return config.model_dump(mode="json")


def _start(document: Document) -> ModelConfig | None:
    """The model at `model.init_from`, whose keys are put underneath the document's own; None where none is named."""
    model = document.data.get("model")
    if not isinstance(model, dict) or not isinstance(path := model.get("init_from"), str):
        return None
    from maverick_jax.pretrained import open_source

    try:
        source = open_source(path).config
    except InputError as error:
        document.problems.append(Problem(document.place("model.init_from"), "model.init_from", str(error)))
        return None
    under = source.model_dump(mode="json", include=set(ModelConfig.keys_of(Purpose.NETWORK)))
    if isinstance(layers := model.get("init_layers"), list):
        under["num_hidden_layers"] = len(layers)
    document.data["model"] = shipped.merge(under, model)
    return source


def _read_experts(document: Document) -> None:
    """Puts what a file that `optimizer.experts` names says in its place: a run keeps its choice, not a path."""
    section, key = document.data.get("optimizer"), "optimizer.experts"
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


def _unfit_start(model: ModelSection, source: ModelConfig | None) -> list[tuple[str, str]]:
    """(key, what is wrong) for everything that keeps the model from beginning as the one at `init_from`."""
    if model.start is None:
        given = [key for key in ("init_layers", "init_upcycle") if getattr(model, key)]
        return [(f"model.{key}", "is of the model at model.init_from, which is not given") for key in given]
    return [] if source is None else findings(model.network, source, model.start)


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
    found = RunConfig.model_json_schema()
    for section in (found, *found["$defs"].values()):
        section.pop("required", None)  # a base may give it
    sources = found["$defs"]["DataConfig"]["properties"]["sources"]
    for union in (found["properties"]["objective"], sources["additionalProperties"]):
        union["anyOf"] = union.pop("oneOf")  # what is there of a section may be of any kind, if a base gives that
    base = {"type": "string", "description": "A shipped name, or a path relative to this file, to build on."}
    found["properties"] = {"base": base, **found["properties"]}
    model = found["$defs"]["ModelSection"]
    model["properties"] = {"base": base, **model["properties"]}
    without = {
        key: value for key, value in model["properties"].items() if key in ModelConfig.model_fields or key == "base"
    }
    found["$defs"]["ModelConfig"] = {**model, "title": "ModelConfig", "properties": without}  # configs/model/*.yaml
    experts = found["$defs"]["OptimizerConfig"]["properties"]["experts"]
    experts["anyOf"].append({"type": "string", "description": "A file that `maverick data experts` made."})
    named = {"type": "string", "description": "A shipped model's name.", "examples": shipped.model_names()}
    found["properties"]["model"] = {"anyOf": [named, found["properties"]["model"]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


# ---- checks across sections ------------------------------------------------------------------------------------------


def check_against_mesh(config: RunConfig, sizes: dict[str, int]) -> None:
    """Raises InputError unless everything that mesh axes of these sizes split can be split evenly."""
    strict_yaml.raise_problems(
        [Problem(Location(f"mesh of {_listed(sizes) or 'one device'}"), key, m) for key, m in _misfits(config, sizes)]
    )


def check_split(what: str, model: ModelConfig, rules: ShardingRules, sizes: dict[str, int]) -> None:
    """Raises InputError, which begins with `what`, unless mesh axes of these sizes split a model evenly."""
    for key, number, axis in _model_split(model):
        if number % (ways := size_of(sizes, getattr(rules, axis))):
            over = _listed({a: sizes.get(a, 1) for a in axes_tuple(getattr(rules, axis))}, "mesh.")
            raise InputError(
                f"{what}: its {key}, {number}, is not a multiple of {ways}, over which {over} split it ({axis})"
            )


def check_vocabulary(config: RunConfig, tokenizer_size: int) -> None:
    """Raises InputError when the tokenizer has ids that the model's embedding table has no row for."""
    if tokenizer_size > config.model.vocab_size:
        raise InputError(
            f"data.tokenizer: {config.data.tokenizer} has {tokenizer_size} tokens, "
            f"more than model.vocab_size ({config.model.vocab_size})"
        )


def _split(config: RunConfig) -> list[tuple[str, int, str]]:
    """What is split: (key, its number, the logical axis that splits it)."""
    data = config.data
    return [
        ("data.batch_size", data.batch_size // config.optimizer.accumulation_steps, "batch"),
        ("data.sequence_length", data.sequence_length, "length"),
        *_model_split(config.model),
    ]


def _model_split(model: ModelConfig) -> list[tuple[str, int, str]]:
    moe, dense = model.num_moe_layers > 0, model.num_moe_layers < model.num_hidden_layers
    split = [
        ("model.num_attention_heads", model.num_attention_heads, "heads"),
        ("model.num_key_value_heads", model.num_key_value_heads, "kv_heads"),
        ("model.vocab_size", model.vocab_size, "vocab"),
        ("model.hidden_size", model.hidden_size, "embed"),
        ("model.hidden_size", model.hidden_size, "table"),
        ("model.hidden_size", model.hidden_size, "residual"),
    ]
    if dense:
        split.append(("model.intermediate_size_mlp", model.intermediate_size_mlp, "mlp"))
    if moe:
        split += [
            ("model.num_local_experts", model.num_local_experts, "experts"),
            ("model.intermediate_size", model.intermediate_size, "mlp"),
            ("model.intermediate_size", model.intermediate_size, "expert_mlp"),
            ("model.hidden_size", model.hidden_size, "expert_embed"),
        ]
    if vision := model.vision:
        split += [
            ("model.vision.num_attention_heads", vision.num_attention_heads, "heads"),
            ("model.vision.intermediate_size", vision.intermediate_size, "mlp"),
            ("model.vision.vision_output_dim", vision.vision_output_dim, "mlp"),
            ("model.vision.hidden_size", vision.hidden_size, "vision_embed"),
            ("model.vision.vision_output_dim", vision.vision_output_dim, "vision_embed"),
            ("model.hidden_size", model.hidden_size, "vision_embed"),
        ]
    return split


def _misfits(config: RunConfig, sizes: dict[str, int]) -> list[tuple[str, str]]:
    """(key, what is wrong) for every number that does not divide. An axis whose size is not known yet counts as 1."""
    accumulation, batch = config.optimizer.accumulation_steps, config.data.batch_size
    if batch % accumulation:
        return [("data.batch_size", f"{batch} is not a multiple of optimizer.accumulation_steps ({accumulation})")]
    if found := config.optimizer.misfits(config.model.network):
        return found
    if "vision" in config.optimizer.selection().roles:
        why = "no source of `data` holds images to train the image encoder with; expected a list without vision"
        return [("optimizer.train", why)]
    rules = config.mesh.sharding_rules()
    misfits = config.objective.misfits(config.model.network, config.data.sequence_length)
    if config.objective.reads_kinds and not config.data.has_trajectories:
        misfits.append(("data.sources", f"objective.kind: {config.objective.kind} needs a source of trajectories "
                        "(kind: trajectories), and there is none"))  # fmt: skip
    for key, number, axis in _split(config):
        mesh_axes = getattr(rules, axis)
        ways = size_of(sizes, mesh_axes)
        if number % ways:
            over = _listed({a: sizes.get(a, 1) for a in axes_tuple(mesh_axes)}, "mesh.")
            said = f"{batch} / {accumulation} (optimizer.accumulation_steps)" if accumulation > 1 else str(number)
            said = said if key == "data.batch_size" else str(number)
            misfits.append((key, f"{said} is not a multiple of {ways}, over which {over} split it ({axis})"))
    return misfits


def _listed(sizes: dict[str, int], prefix: str = "") -> str:
    return ", ".join(f"{prefix}{axis}={size}" for axis, size in sizes.items() if size != 1)
