"""The config of a run: its sections, and the checks that need more than one of them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PrivateAttr

from data.config import DataConfig
from data.rows.fields import FIELDS
from maverick_jax.accounting.devices import Hardware
from maverick_jax.checkpoint.store import CheckpointConfig
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.images import ImageTokenIds
from maverick_jax.initialization.layer_map import Start, findings
from maverick_jax.settings import strict_yaml
from maverick_jax.settings.section import Section
from maverick_jax.settings.strict_yaml import Location, Problem
from maverick_jax.sharding import PIPELINE_AXIS, MeshConfig, ShardingRules, axes_tuple, size_of
from maverick_jax.text import Tokenizer
from train.faults.config import GuardConfig
from train.metrics_writer import LoggingConfig
from train.objectives import AnyObjective, Pretrain
from train.optimizers import AdamW, OptimizerConfig
from train.reasoning import reasoning_misfits
from train.stages import StagePlace, StageSection
from train.trainable.config import TrainableConfig

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class RunSection(Section):
    """The run's name, length and directory."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Letters, digits, `.`, `_` and `-`."""
    dir: str | None = None
    """Directory of the run's files. null: `runs/<name>`."""
    steps: Positive
    """Optimizer steps in the whole run."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the initial weights and, unless `data.seed` is given, of the order of the data."""
    eval_every: Natural = 0
    """Steps between evaluations on held-out data; 0: none."""
    eval_batches: Positive = 8
    """Batches per evaluation. Several held-out sources share them evenly; each has at least one."""
    eval_tasks: tuple[str, ...] = ()
    """Tasks that the model answers during the run: shipped names, YAML files of tasks, or JSON lines of questions. None
    of them may run programs."""
    eval_tasks_every: Natural = 0
    """Steps between evaluations on `eval_tasks`; 0: only at the end."""
    skip_budget: Natural = 10
    """Maximum number of updates skipped because the loss or gradient was not finite or a spike; one more ends the run
    (exit code 79)."""
    hardware: Hardware | None = None
    """The target device, such as `h200`, for which `maverick plan` plans. null: this machine's devices."""

    @property
    def directory(self) -> pathlib.Path:
        return pathlib.Path(self.dir or f"runs/{self.name}")


class ModelSection(ModelConfig):
    """The network, and the source of its initial weights."""

    init_from: str | None = None
    """The model whose weights the run starts from: a run directory, one of its checkpoints or a Hugging Face folder. It
    also gives the network's keys that are not set here. null: random weights."""
    init_config: Annotated[str, Field(min_length=1)] | None = None
    """A run config (path or shipped name) that is trained first, in the directory `init_from`, unless that contains its
    finished run; null: the model must exist."""
    init_layers: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = None
    """The source layer (of the model at `init_from`, from 0) for each layer of this model. A layer may be repeated.
    null: all layers, in order."""
    init_upcycle: bool = False
    """Whether an MoE layer may start from a dense layer: the shared expert copies the dense layer, and the routed
    experts initially add nothing."""
    init_other_tokenizer: bool = False
    """Whether `data.tokenizer` may differ from the tokenizer of the model at `init_from`. The rows of the embedding
    table and the output matrix then belong to other tokens. false: another tokenizer is an error."""
    init_vocabulary: bool = False
    """Whether the model at `init_from` moves to the vocabulary of `data.tokenizer`: tokens that it has too keep their
    rows, others begin as the mean of their pieces. `vocab_size` is then that of the tokenizer, unless it is set."""

    @property
    def network(self) -> ModelConfig:
        return ModelConfig.model_construct(**{key: getattr(self, key) for key in ModelConfig.model_fields})


class RunConfig(Section):
    """The whole config of a run."""

    plugins: tuple[str, ...] = ()
    """Modules to import that add your own objectives, optimizers, data sources, tasks, environments or sinks."""
    run: RunSection
    model: ModelSection
    mesh: MeshConfig = MeshConfig()
    data: DataConfig
    objective: AnyObjective = Pretrain()
    trainable: TrainableConfig = TrainableConfig()
    optimizer: OptimizerConfig = AdamW()
    guard: GuardConfig = GuardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    stages: tuple[StageSection, ...] = ()
    """The stages of the run, in order. None: it is one stage, of `run.steps` steps."""
    _place: StagePlace | None = PrivateAttr(None)
    _parts: "tuple[RunConfig, ...]" = PrivateAttr(())

    @property
    def start(self) -> Start | None:
        """The source of the initial weights; None: they are random."""
        model, moved = self.model, self.data.tokenizer if self.model.init_vocabulary else None
        return None if model.init_from is None else Start(model.init_from, model.init_layers, model.init_upcycle, moved)

    @property
    def place(self) -> StagePlace:
        """Where it lies in its run: of a run without stages, and of one stage."""
        steps = self.run.steps
        return self._place or StagePlace(self, steps=steps, scheduled=(0, steps))

    @property
    def whole(self) -> "RunConfig":
        """The config of the run that it is a stage of."""
        return self.place.run

    @property
    def in_stages(self) -> "tuple[RunConfig, ...]":
        """The config of each stage of the run. Its `run.steps` are those of the run up to the stage's end."""
        return self.whole._parts or (self,)

    def divided(self, parts: "Sequence[RunConfig]", places: Sequence[StagePlace]) -> "RunConfig":
        """The config of a run whose stages are `parts`; `places` lack the run."""
        steps = places[-1].first + places[-1].steps
        whole = self.model_copy(update={"run": self.run.model_copy(update={"steps": steps})})
        whole._parts = tuple(part.model_copy() for part in parts)
        for part, place in zip(whole._parts, places, strict=True):
            part._place = dataclasses.replace(place, run=whole)
        return whole


# ---- checks across sections ------------------------------------------------------------------------------------------


def check_against_mesh(config: RunConfig, sizes: dict[str, int]) -> None:
    """Raises InputError unless everything that mesh axes of these sizes split can be split evenly."""
    strict_yaml.raise_problems(
        [Problem(Location(f"mesh of {_listed(sizes) or 'one device'}"), key, m) for key, m in misfits(config, sizes)]
    )


def check_split(what: str, model: ModelConfig, rules: ShardingRules, sizes: dict[str, int]) -> None:
    """Raises InputError, which begins with `what`, unless mesh axes of these sizes split a model evenly."""
    for key, number, axis in _model_split(model):
        if number % (ways := size_of(sizes, getattr(rules, axis))):
            over = _listed({a: sizes.get(a, 1) for a in axes_tuple(getattr(rules, axis))}, "mesh.")
            raise InputError(
                f"{what}: its {key}, {number}, is not a multiple of {ways}, over which {over} split it ({axis})"
            )
    if found := _unfit_periods(model, sizes):
        raise InputError(f"{what}: its {found}")


def check_vocabulary(config: RunConfig, tokenizer_size: int) -> None:
    """Raises InputError when the tokenizer has ids that the model's embedding table has no row for."""
    if tokenizer_size > config.model.vocab_size:
        raise InputError(
            f"data.tokenizer: {config.data.tokenizer} has {tokenizer_size} tokens, "
            f"more than model.vocab_size ({config.model.vocab_size})"
        )


def check_picture_tokens(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Raises InputError if the data holds pictures and their tokens are others than the model takes them for."""
    if not config.data.has_pictures or config.model.vision is None:
        return
    if (found := ImageTokenIds.of(tokenizer).patch) != (expected := config.model.vision.image_token_index):
        raise InputError(
            f"model.vision.image_token_index: {expected}; expected {found}, the id of <|patch|> in data.tokenizer "
            f"({config.data.tokenizer})"
        )


def _split(config: RunConfig) -> list[tuple[str, int, str]]:
    """The sizes that the mesh divides: (key, size, logical axis)."""
    data = config.data
    return [
        ("data.batch_size", data.batch_size // config.optimizer.accumulation_steps, "batch"),
        ("data.sequence_length", data.sequence_length, "stream"),
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
    for group in model.reasoning_heads.groups if model.reasoning_heads else ():
        split.append((f"model.reasoning_heads.{group.name}_heads", group.heads, "heads"))
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


def misfits(config: RunConfig, sizes: dict[str, int]) -> list[tuple[str, str]]:
    """(key, error) for every size that the mesh does not divide. An axis of unknown size counts as 1."""
    accumulation, batch = config.optimizer.accumulation_steps, config.data.batch_size
    if batch % accumulation:
        return [("data.batch_size", f"{batch} is not a multiple of optimizer.accumulation_steps ({accumulation})")]
    if found := config.trainable.misfits(config.model.network):
        return found
    if found := config.optimizer.multipliers.misfits(config.model.network):
        return found
    if found := _picture_misfits(config):
        return found
    rules = config.mesh.sharding_rules()
    found = config.objective.check_model(config.model.network, config.data.sequence_length)
    found += config.objective.check_batch(batch, config.data.sequence_length, size_of(sizes, rules.batch))
    found += _unshared_rows(config, size_of(sizes, rules.length))
    found += reasoning_misfits(config.model, config.data, config.objective, sizes.get(PIPELINE_AXIS, 1))
    if config.objective.batch_maker() is not None and (factor := config.model.expert_capacity_factor) is not None:
        found.append(("model.expert_capacity_factor", f"{factor:g} drops tokens, and objective.kind: "
                      f"{config.objective.kind} generates samples, which drops none; expected null"))  # fmt: skip
    found += _unfit_sources(config)
    found += _unfit_copies(config)
    for key, number, axis in _split(config):
        mesh_axes = getattr(rules, axis)
        ways = size_of(sizes, mesh_axes)
        if number % ways:
            over = _listed({a: sizes.get(a, 1) for a in axes_tuple(mesh_axes)}, "mesh.")
            said = f"{batch} / {accumulation} (optimizer.accumulation_steps)" if accumulation > 1 else str(number)
            said = said if key == "data.batch_size" else str(number)
            found.append((key, f"{said} is not a multiple of {ways}, over which {over} split it ({axis})"))
    return found or _pipeline_misfits(config, sizes) or _unanswerable(config, sizes)


def _unanswerable(config: RunConfig, sizes: dict[str, int]) -> list[tuple[str, str]]:
    """(key, error) for the first reason why a run on axes of these sizes cannot answer tasks."""
    run, said = config.run, ""
    if not run.eval_tasks:
        return [("run.eval_tasks_every", "there are no run.eval_tasks; expected 0")] if run.eval_tasks_every else []
    shared = size_of(sizes, config.mesh.sharding_rules().length)
    for axis, ways in (("context", shared), (PIPELINE_AXIS, sizes.get(PIPELINE_AXIS, 1))):
        if ways > 1:
            said = f"answers are not written with mesh.{axis}={ways}; expected mesh.{axis}=1"
    if (factor := config.model.expert_capacity_factor) is not None:
        said = f"answers drop no tokens, and model.expert_capacity_factor is {factor:g}; expected null"
    return [("run.eval_tasks", said)] if said else []


def _picture_misfits(config: RunConfig) -> list[tuple[str, str]]:
    """(key, error) where the image encoder and the pictures of the data do not belong together."""
    if not config.data.has_pictures:
        return [
            (key, f"{role} is a part of the image encoder, and no source of `data` holds pictures to train it with; "
             f"expected a list without {role}")
            for key, role in config.trainable.of_pictures()[:1]
        ]  # fmt: skip
    if (vision := config.model.vision) is None:
        return [("data.sources", "hold pictures, and the model has no image encoder (model.vision is null)")]
    pairs = {"tile_size": "image_size", "patch_size": "patch_size", "pixel_shuffle_ratio": "pixel_shuffle_ratio"}
    return [
        (f"data.tiles.{key}", f"{here}; expected {there}, as model.vision.{name}")
        for key, name in pairs.items()
        if (here := getattr(config.data.tiles, key)) != (there := getattr(vision, name))
    ]


def _unfit_copies(config: RunConfig) -> list[tuple[str, str]]:
    """(key, error) if copies of checkpoints would lie among the run's own files, or these among the copies."""
    copies = config.checkpoint.copies
    if copies is None or "://" in copies.to:
        return []
    there, run_dir = (pathlib.Path(path).expanduser().resolve() for path in (copies.to, config.run.directory))
    if not (there.is_relative_to(run_dir) or run_dir.is_relative_to(there)):
        return []
    said = f"{copies.to} and the run directory ({config.run.directory}) lie in each other; expected another place"
    return [("checkpoint.copies.to", said)]


def _unfit_sources(config: RunConfig) -> list[tuple[str, str]]:
    """(key, error) if the objective reads what the sources do not have, or the sources have what it does not read."""
    data, kind = config.data, f"objective.kind: {config.objective.kind}"
    read = {FIELDS[name].source for name in config.objective.fields()}
    if "rollouts" in read:
        said = f"{kind} learns from episodes of its environments; expected none"
        return [("data.sources", said)] if data.sources else []
    if not data.sources:
        return [("data.sources", f"none, and {kind} learns from data; expected one or more")]
    wanted = {
        "trajectories": (data.has_kinds, "trajectories (kind: trajectories) or pictures (kind: pictures)"),
        "preferences": (data.has_preferences, "preferences (kind: preferences)"),
    }
    found = [
        ("data.sources", f"{kind} needs a source of {what}, and there is none")
        for source, (has, what) in wanted.items()
        if source in read and not has
    ]
    if data.has_preferences and "preferences" not in read:
        found.append(("objective.kind", f"{config.objective.kind} does not tell a pair's sides apart, and the sources "
                      "of data have kind: preferences; expected preference"))  # fmt: skip
    return found


def _pipeline_misfits(config: RunConfig, sizes: dict[str, int]) -> list[tuple[str, str]]:
    """(key, error) for what a pipeline of these sizes cannot do."""
    if (stages := sizes.get(PIPELINE_AXIS, 1)) == 1:
        return []
    found, over = [], f"mesh.{PIPELINE_AXIS}={stages}"
    if said := _unfit_periods(config.model.network, sizes):
        found.append(("model.num_hidden_layers", said))
    rows = config.data.batch_size // config.optimizer.accumulation_steps
    rows //= size_of(sizes, config.mesh.sharding_rules().batch)
    if rows % (config.mesh.microbatches or 1):
        said = f"{config.mesh.microbatches} does not divide the {rows} rows of a device in one forward pass"
        found.append(("mesh.microbatches", f"{said}; expected null or a divisor"))
    if config.trainable.selection().experts is not None:
        said = f"are part of a stack whose layers {over} splits; expected null, or mesh.{PIPELINE_AXIS}=1"
        found.append(("trainable.experts", said))
    if config.objective.batch_maker() is not None:
        said = f"samples that the model generates are not supported with {over}; expected mesh.{PIPELINE_AXIS}=1"
        found.append(("objective", said))
    return found


def _unshared_rows(config: RunConfig, ways: int) -> list[tuple[str, str]]:
    """(key, error) for the first reason why `ways` devices cannot share rows."""
    T, cell, model = config.data.sequence_length, config.data.cell, config.model
    if ways == 1 or T % ways:
        return []
    if config.objective.batch_maker() is not None:
        return [
            ("objective", f"generates samples, whose rows devices cannot share; expected mesh.context=1, not {ways}")
        ]
    if model.local_attention != "chunked" or model.attention_chunk_size is None:
        return []
    chunk = model.attention_chunk_size
    if T % (unit := 2 * ways * chunk):
        said = f"{T} is not a multiple of {unit}, twice mesh.context={ways} times model.attention_chunk_size ({chunk})"
        fits = max((n for n in range(2, ways) if T % (2 * n * chunk) == 0), default=1)
        return [("data.sequence_length", f"{said}; expected {-(-T // unit) * unit}, or mesh.context={fits}")]
    block = T // (2 * ways)
    if cell is None or cell % chunk or block % cell:
        said = "null" if cell is None else str(cell)
        return [
            (
                "data.cell",
                f"{said} lets attention chunks of a document lie on two of mesh.context={ways} devices; expected a "
                f"multiple of model.attention_chunk_size ({chunk}) that divides {block}, such as {block}",
            )
        ]
    return []


def _unfit_periods(model: ModelConfig, sizes: dict[str, int]) -> str | None:
    """What is wrong if the stages of a pipeline do not divide the model's periods."""
    periods, stages = model.stack.num_periods, sizes.get(PIPELINE_AXIS, 1)
    if stages == 1 or (periods and periods % stages == 0):
        return None
    each = f"{model.num_hidden_layers} layers are {periods} whole periods of {model.stack.period}"
    return f"{each}, not a multiple of {stages}, over which mesh.{PIPELINE_AXIS}={stages} splits them"


def _listed(sizes: dict[str, int], prefix: str = "") -> str:
    return ", ".join(f"{prefix}{axis}={size}" for axis, size in sizes.items() if size != 1)


def unfit_start(config: RunConfig, source: ModelConfig | None) -> list[tuple[str, str]]:
    """(key, error) for every reason why the model cannot start from the one at `model.init_from`."""
    model = config.model
    if config.start is None:
        keys = ("init_config", "init_layers", "init_upcycle", "init_other_tokenizer", "init_vocabulary")
        given = [key for key in keys if getattr(model, key)]
        return [(f"model.{key}", "is of the model at model.init_from, which is not given") for key in given]
    return [] if source is None else findings(model.network, source, config.start)
