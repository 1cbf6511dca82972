"""What a config takes from the models that it names, where it says nothing itself: network, vocabulary and tokenizer.

The config is a parsed document here, not yet validated. Models are looked up by their metadata; no weights are read.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable

import pydantic

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.huggingface.peft import PeftAdapter
from maverick_jax.network import Purpose
from maverick_jax.settings import shipped
from maverick_jax.settings.strict_yaml import Document, Problem
from maverick_jax.text import find_tokenizer, load_tokenizer, same_tokens
from maverick_jax.text.tokenizers.base import NAME_FILE, read_file
from train.config import RunConfig
from train.objectives import AnyObjective
from train.objectives.base import Reference
from train.trainable.lora import targets_of

log = logging.getLogger(__name__)

TOKENIZER, START, OTHER = "data.tokenizer", "model.init_from", "model.init_other_tokenizer"
MOVES = "model.init_vocabulary"


@dataclasses.dataclass(frozen=True)
class Named:
    """A model that a config or a command names."""

    key: str
    """The config key or the argument that names it."""
    path: str
    config: ModelConfig
    tokenizer: str | None
    """A value of `data.tokenizer` that means the model's own; None: it has no tokenizer."""


def take_network(document: Document, read: Callable[[str], RunConfig]) -> Named | None:
    """Puts the network of the model at `model.init_from` underneath the document's own `model` keys. Returns that
    model; None if none is named or it cannot be opened, which is added to the document's problems. A model that the
    run trains first need not be there yet; `read` reads its run config."""
    model = document.data.get("model")
    if not isinstance(model, dict) or not isinstance(path := model.get("init_from"), str):
        return None
    try:
        found = _named(START, path)
    except InputError as error:
        found = _made(model.get("init_config"), path, read)
        found = found or next((named for named in _of_objective(document, read) if named.path == path), None)
        if found is None:
            document.problems.append(Problem(document.place(START), START, str(error)))
            return None
    under = found.config.model_dump(mode="json", include=set(ModelConfig.keys_of(Purpose.NETWORK)))
    if _says(document, MOVES):
        del under["vocab_size"]
    if isinstance(layers := model.get("init_layers"), list):
        under["num_hidden_layers"] = len(layers)
    document.data["model"] = shipped.merge(under, model)
    return found


def take_adapter(document: Document) -> None:
    """Fills in what `trainable.lora` does not say from the PEFT adapter at `trainable.lora.init_from`: rank, alpha,
    rslora, dropout and targets. Adds a problem for a rank or a scale that is not the adapter's."""
    trainable = document.data.get("trainable")
    section, key = trainable.get("lora") if isinstance(trainable, dict) else None, "trainable.lora"
    if not isinstance(section, dict) or not isinstance(path := section.get("init_from"), str):
        return
    try:
        adapter = PeftAdapter.at(path)
        theirs = adapter.settings.model_dump()
        for name, value in theirs.items():
            if section.setdefault(name, value) != value:
                problem = f"{section[name]!r:.40} here, {value} in {path}"
                document.problems.append(Problem(document.place(f"{key}.{name}"), f"{key}.{name}", problem))
        section.setdefault("dropout", adapter.dropout)
        section.setdefault("targets", list(targets_of(adapter.matrices)))
    except InputError as error:
        document.problems.append(Problem(document.place(f"{key}.init_from"), f"{key}.init_from", str(error)))


def take_tokens(document: Document, start: Named | None, read: Callable[[str], RunConfig]) -> None:
    """Fills in `data.tokenizer` and `model.vocab_size`, which the trained model shares with the one that it starts from
    (`start`) and with an objective's models. Adds a problem for a tokenizer that is not that of `start`.

    read: reads a run config, for models that will be trained first.
    """
    others = _of_objective(document, read)
    if start is None:
        _take_vocabulary(document, others)
    _take_tokenizer(document, start, others)
    if start is not None and _says(document, MOVES):
        _take_moved_vocabulary(document, start)


def argument(name: str, path: str | None) -> Named | None:
    """The model at `path`, which a command uses in the place of the config's; `name` is that of the argument. None if
    the argument is not given. Raises InputError if there is no model."""
    return None if path is None else _named(name, path)


# ---- the models that are named -------------------------------------------------------------------------------------


def _named(key: str, path: str) -> Named:
    from maverick_jax.pretrained import open_source  # imports JAX programs: only where a model is named

    config, file = open_source(path).config, find_tokenizer(pathlib.Path(path).expanduser())
    if file is not None and file.name == NAME_FILE:  # the file holds a value of data.tokenizer
        return Named(key, path, config, read_file(file).decode("utf-8", "replace").strip())
    return Named(key, path, config, None if file is None else path)


def _made(config: object, path: str, read: Callable[[str], RunConfig]) -> Named | None:
    """The model that the run of `config` (path or shipped name) will have trained at `path`."""
    if not isinstance(config, str) or not config:
        return None
    making = read(config)
    return Named(START, path, making.model.network, making.data.tokenizer)


def _of_objective(document: Document, read: Callable[[str], RunConfig]) -> list[Named]:
    """The models whose tokens the objective shares. One that cannot be found, or a malformed objective, is left to the
    checks that follow."""
    try:
        section = json.dumps(document.data.get("objective") or {})
        objective = pydantic.TypeAdapter(AnyObjective).validate_json(section)
        return [_reference(name, model, read) for name, model in objective.same_tokens_as().items()]
    except (pydantic.ValidationError, InputError):
        return []


def _reference(name: str, model: Reference, read: Callable[[str], RunConfig]) -> Named:
    key = f"objective.{name}"
    try:
        return _named(key, model.path)
    except InputError:
        if model.made_by is None:
            raise
    making = read(model.made_by)
    return Named(key, model.path, making.model.network, making.data.tokenizer)


# ---- what is taken -------------------------------------------------------------------------------------------------


def _take_vocabulary(document: Document, others: list[Named]) -> None:
    """A vocabulary size that a shipped model brings is one that the config does not give."""
    model, key = document.data.get("model"), "model.vocab_size"
    if not isinstance(model, dict) or not others:
        return
    if model.get("vocab_size") is not None and not shipped.is_model_file(document.place(key).source):
        return
    if model.get("vocab_size") != (size := others[0].config.vocab_size):
        model["vocab_size"] = size
        document.places[key] = document.place(others[0].key)
        log.info("%s: %d, as in %s (%s)", key, size, others[0].path, others[0].key)


def _take_tokenizer(document: Document, start: Named | None, others: list[Named]) -> None:
    section = document.data.get("data")
    if not isinstance(section, dict):
        return
    other = next((key for key in (OTHER, MOVES) if _says(document, key)), None)
    if (given := section.get("tokenizer")) is not None:
        if start is not None and not other and isinstance(given, str):
            _require_same(document, start, given)
        return
    section.pop("tokenizer", None)
    named = ([] if start is None else [start]) + others
    if other and start is not None:
        _problem(document, f"required, because {other} says that it is not that of {start.path}")
    elif found := next((m for m in named if m.tokenizer is not None), None):
        section["tokenizer"] = found.tokenizer
        document.places[TOKENIZER] = document.place(found.key)
        log.info("%s: %s, the tokenizer of %s (%s)", TOKENIZER, found.tokenizer, found.path, found.key)
    elif named:
        _problem(document, f"required, because {named[0].path} ({named[0].key}) has no tokenizer to take")


def _take_moved_vocabulary(document: Document, start: Named) -> None:
    """The vocabulary size of a model that moves to `data.tokenizer`. Adds a problem if it cannot."""
    said, size = "", start.config.vocab_size
    if _says(document, OTHER):
        said = f"{OTHER} takes the rows as they are; expected one of the two"
    elif start.config.vision is not None:
        said = f"{start.path} has an image encoder, whose token ids belong to its vocabulary; expected a text model"
    elif start.tokenizer is None:
        said = f"{start.path} has no tokenizer, which would say what its rows stand for; expected a folder with one"
    elif isinstance(given := (document.data.get("data") or {}).get("tokenizer"), str):
        try:
            size = load_tokenizer(given).vocab_size
        except InputError as error:
            _problem(document, str(error))
    if said:
        document.problems.append(Problem(document.place(MOVES), MOVES, said))
    if document.data["model"].setdefault("vocab_size", size) is None:
        document.data["model"]["vocab_size"] = size


def _says(document: Document, key: str) -> bool:
    """Whether this key of `model` is true."""
    model = document.data.get("model")
    return isinstance(model, dict) and model.get(key.removeprefix("model.")) is True


def _require_same(document: Document, start: Named, given: str) -> None:
    if start.tokenizer is None:
        log.warning("%s: %s has no tokenizer; cannot verify that its token ids are those of %s (%s)",
                    start.key, start.path, TOKENIZER, given)  # fmt: skip
    elif start.tokenizer != given:
        try:
            theirs, ours = load_tokenizer(start.tokenizer), load_tokenizer(given)
        except InputError as error:
            _problem(document, str(error))
            return
        if not same_tokens(theirs, ours):
            message = (
                f"{given} ({ours.vocab_size:,} ids) is not the tokenizer of {start.path} ({theirs.vocab_size:,} ids), "
                f"which {start.key} names, so its ids would mean other text. Leave {TOKENIZER} out, or set it to null, "
                f"to take the model's; {MOVES}: true moves the model to another one; {OTHER}: true accepts it as it is"
            )
            _problem(document, message)


def _problem(document: Document, message: str) -> None:
    document.problems.append(Problem(document.place(TOKENIZER), TOKENIZER, message))
