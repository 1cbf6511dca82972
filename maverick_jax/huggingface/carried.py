"""What a public folder says that we do not compute with, such as the length of its context: a run keeps the folder's
files, and an export says the same again.

A run directory has the files under the same names, except `config.json`, which marks a Hugging Face folder.
"""

import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from maverick_jax.errors import InputError
from maverick_jax.files import read_json

log = logging.getLogger(__name__)

CONFIG, GENERATION, CHAT_TEMPLATE = "hugging_face_config.json", "generation_config.json", "chat_template.json"
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
FILES = (CONFIG, GENERATION, CHAT_TEMPLATE, *PROCESSOR)
"""The files' names in a run directory."""
MAX_BYTES = 1 << 20

CONTEXT = "max_position_embeddings"
_THEIRS = (CONTEXT, "use_cache", "initializer_range")
"""Keys of `config.json` that we write and do not compute with: theirs come before ours."""
_OF_THE_FILES = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "model_type"),
    *("quantization_config", "compression_config", "text_config", "vision_config"),
}
"""Keys that describe their files, not the model."""
_CODE = "auto_map"
"""Names Python files to run, which we neither run nor copy."""


def find(path: str | pathlib.Path, name: str) -> pathlib.Path | None:
    """The file `name` of FILES of the model at `path`: a run directory, one of its checkpoints or a Hugging Face
    folder. None if there is none."""
    folder = pathlib.Path(path).expanduser().absolute()
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    names = ("config.json", CONFIG) if name == CONFIG else (name,)
    return next((file for place in (folder, run) for n in names if (file := place / n).is_file()), None)


def read(path: str | pathlib.Path, name: str) -> dict[str, Any] | None:
    """That file as JSON; None if there is none. Raises InputError if it is not a JSON object."""
    file = find(path, name)
    return None if file is None else read_json(file, MAX_BYTES)


def require_readable(source: str | pathlib.Path) -> None:
    """Raises InputError if one of the files at `source` is malformed."""
    for name in FILES:
        read(source, name)


def keep(source: str | pathlib.Path, folder: pathlib.Path) -> None:
    """Copy the files that there are at `source` to a run directory. Raises InputError for a malformed one."""
    copy(source, folder, FILES)


def copy(source: str | pathlib.Path, folder: pathlib.Path, names: tuple[str, ...]) -> None:
    """Copy those of the files `names` that there are at `source` to `folder`."""
    for name in names:
        if (file := find(source, name)) is not None:
            read_json(file, MAX_BYTES)
            shutil.copyfile(file, folder / name)


def context_of(theirs: Mapping[str, Any] | None) -> int | None:
    """The context of a source's `config.json`, in tokens; None if it says none. Raises InputError for one that is no
    number of tokens."""
    value = None if theirs is None else _text(theirs).get(CONTEXT)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**40):
        raise InputError(f"config.json: {CONTEXT}: expected a number of tokens, found {value!r:.80}")
    return value


def token_ids(theirs: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """The ids of begin, end and padding tokens in a source's `config.json`; None if it has none."""
    found = {} if theirs is None else {key: _text(theirs)[key] for key in keys if _text(theirs).get(key) is not None}
    return found or None


def with_theirs(ours: dict[str, Any], theirs: Mapping[str, Any] | None) -> dict[str, Any]:
    """`config.json` of an export: `ours`, with what only the source's says, in every part that both have."""
    if theirs is None:
        return ours
    if _CODE in theirs:
        log.info("config.json: %s is left out: it names code", _CODE)
    if "text_config" not in ours:
        return _merged(ours, _text(theirs))
    found = _merged(ours, theirs)
    for part in ("text_config", "vision_config"):
        if isinstance(theirs.get(part), Mapping):
            found[part] = _merged(ours[part], theirs[part])
    return found


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    first = {key: theirs[key] for key in _THEIRS if key in ours and theirs.get(key) is not None}
    more = {k: v for k, v in theirs.items() if k not in ours and k not in _OF_THE_FILES and k != _CODE}
    return {**ours, **first, **more}
