"""Open Hugging Face folders of Llama 4 as readers of our parameters.

Opening reads `config.json` and headers only, and refuses a folder whose tensors are not exactly those that its config
implies. A parameter is then read in parts, each from the bytes that it needs.
"""

import dataclasses
import hashlib
import itertools
import logging
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.files import listed, read_json
from maverick_jax.huggingface import compressed_tensors, extensions
from maverick_jax.huggingface import config as huggingface_config
from maverick_jax.huggingface import names as huggingface_names
from maverick_jax.huggingface.compressed_tensors import Dequantized
from maverick_jax.huggingface.safetensors_reader import Stored, read_folder
from maverick_jax.huggingface.tensor_blocks import View
from maverick_jax.settings.section import did_you_mean

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 2**20
PLAIN_TYPES = ("F32", "F16", "BF16")
_MOST_HINTS, _LEAST_IN_A_LAYER = 20, 9
_FUSED = re.compile(r"(.+\.feed_forward\.experts)\.(gate_up_proj|down_proj)")


def is_folder(path: pathlib.Path) -> bool:
    return (path / CONFIG_FILE).is_file()


@dataclasses.dataclass(frozen=True)
class StackedTensors:
    """Reader of one of our parameters, which is stored as several tensors."""

    shape: tuple[int, ...]
    stacked: tuple[int, ...]
    """The axes of our parameter that are split over tensors: layers, and experts if each has its own tensors."""
    axes: tuple[int, ...]
    """The other axes, in the order of a tensor's axes."""
    tensors: Mapping[tuple[int, ...], Stored | Dequantized]
    """Index along the stacked axes -> tensor."""

    @property
    def order(self) -> tuple[int, ...]:
        """Axes of our parameter from slowest to fastest in the order on disk."""
        return (*self.stacked, *self.axes)

    def __call__(self, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        """The part `index` (slices of step 1) as `dtype`, rounded to nearest even, in the order on disk."""
        bounds = [part.indices(n)[:2] for part, n in zip(index, self.shape, strict=True)]
        inside, shape = [slice(*bounds[axis]) for axis in self.axes], [self.shape[axis] for axis in self.axes]
        found = _aligned([bounds[axis][1] - bounds[axis][0] for axis in self.order], dtype)
        rows = found.reshape(-1, *found.shape[len(self.stacked) :])
        for row, at in zip(rows, itertools.product(*[range(*bounds[axis]) for axis in self.stacked]), strict=True):
            tensor = self.tensors[at]
            if isinstance(tensor, Stored) and tensor.dtype == dtype:
                tensor.read(inside, shape, row)
            else:
                row[...] = tensor.read(inside, shape)
        return found.transpose(np.argsort(self.order))


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array that is aligned so that JAX's CPU backend can use it without a copy."""
    size, alignment = math.prod(shape) * np.dtype(dtype).itemsize, 64
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class HuggingFaceFolder:
    """A folder whose config and headers have been read."""

    path: pathlib.Path
    config: ModelConfig
    """`param_dtype` is bfloat16 if all tensors that are not quantized are bfloat16, else float32."""
    stored: Mapping[str, Stored]
    """Tensor name -> tensor."""
    beside: Mapping[str, Stored]
    """Our path -> tensor, of those in a sidecar (`extensions`)."""
    problems: tuple[str, ...]
    """Problems of the index, reported together with those of the tensors."""
    quantized: bool

    @classmethod
    def at(cls, path: pathlib.Path) -> "HuggingFaceFolder":
        """Open the folder `path`. Raises InputError for an unsupported model or malformed files."""
        given = read_json(path / CONFIG_FILE, MAX_CONFIG_BYTES)
        config = huggingface_config.read_config(given, str(path / CONFIG_FILE))
        quantized = huggingface_config.quantization(given) is not None
        stored, problems = read_folder(path)
        # Check this before creating anything whose size depends on the claimed number of layers.
        if len(stored) < _LEAST_IN_A_LAYER * config.num_hidden_layers:
            raise InputError(
                f"{path}: holds {len(stored)} tensors, too few for the {config.num_hidden_layers} layers of config.json"
            )
        scales = {compressed_tensors.scale_name(name) for name in stored}
        types = {tensor.type for name, tensor in stored.items() if name not in scales}
        dtype = "bfloat16" if types <= {"BF16", compressed_tensors.QUANTIZED} else "float32"
        if len(types & set(PLAIN_TYPES)) > 1:
            log.info("%s: tensors are %s; loading as float32, which is exact", path, ", ".join(sorted(types)))
        config = config.model_copy(update={"param_dtype": dtype, "compute_dtype": dtype})
        sidecar = extensions.read(path, config)
        return cls(path, sidecar.config, stored, sidecar.stored, tuple(problems), quantized)

    @property
    def _every(self) -> dict[str, Stored]:
        return {**self.stored, **self.beside}

    def identity(self) -> str:
        """Hex digest of the config and of the file and offset of every tensor."""
        whole = hashlib.sha256(self.config.model_dump_json().encode())
        for name, tensor in sorted(self._every.items()):
            file = tensor.file
            stored = (name, tensor.type, tensor.shape, tensor.offset)
            whole.update(repr((*stored, str(file.path), file.size, file.modified, file.inode)).encode())
        return whole.hexdigest()

    def digest(self) -> str:
        """Hex digest of the names and contents of all tensors, whatever files they are in. It reads all of them."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter's lock
            digests = pool.map(lambda tensor: tensor.digest(), self._every.values())
            found = dict(zip(self._every, digests, strict=True))
        whole = hashlib.sha256()
        for name, digest in sorted(found.items()):
            whole.update(name.encode() + b"\0" + digest)
        return whole.hexdigest()

    def readers(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StackedTensors]:
        """A reader for each of our parameters (`shapes`: path -> shape).

        Raises InputError that lists all missing, unexpected and duplicated tensors and those of a wrong shape or type.
        """
        plain = {name: shape for name, shape in shapes.items() if name not in self.beside}
        views = [view for entry in huggingface_names.table(plain) for view in self._views(View.of(entry), plain)]
        self._check(views)
        parts: dict[str, list[View]] = {}
        for view in views:
            parts.setdefault(view.ours, []).append(view)
        found = {name: self._reader(tuple(shape), parts[name]) for name, shape in plain.items()}
        whole = lambda stored: StackedTensors(stored.shape, (), tuple(range(len(stored.shape))), {(): stored})
        return {name: found.get(name) or whole(self.beside[name]) for name in shapes}

    def _views(self, fused: View, shapes: Mapping[str, tuple[int, ...]]) -> Iterable[View]:
        """`fused` itself, or the tensors of each expert if the folder has those instead."""
        match = _FUSED.fullmatch(fused.name)
        if not match or f"{match[1]}.0.down_proj.weight" not in self.stored or fused.name in self.stored:
            return [fused]
        return fused.experts(shapes[fused.ours])

    def _reader(self, shape: tuple[int, ...], views: list[View]) -> StackedTensors:
        stacked = tuple(axis for axis, at in enumerate(views[0].fixed) if at is not None)
        tensors = {tuple(at for at in view.fixed if at is not None): self._tensor(view.name) for view in views}
        return StackedTensors(shape, stacked, views[0].axes, tensors)

    def _tensor(self, name: str) -> Stored | Dequantized:
        if self.stored[name].type != compressed_tensors.QUANTIZED:
            return self.stored[name]
        return Dequantized(self.stored[name], self.stored[compressed_tensors.scale_name(name)])

    def _check(self, views: list[View]) -> None:
        expected = {view.name: view.shape for view in views}
        problems = list(self.problems)
        scales: set[str] = set()
        for name, shape in expected.items():
            if name not in self.stored:
                problems.append(f"missing: {name} {list(shape)}")
                continue
            tensor, scale = self.stored[name], compressed_tensors.scale_name(name)
            if tensor.shape != shape:
                problems.append(f"shape: {name} is {list(tensor.shape)}; config.json implies {list(shape)}")
            if self.quantized and tensor.type == compressed_tensors.QUANTIZED:
                scales.add(scale)
                problem = (
                    compressed_tensors.scale_problem(tensor, self.stored[scale])
                    if scale in self.stored
                    else "is missing"
                )
                problems += [f"scale: {scale} {problem}"] if problem else []
            elif tensor.type not in PLAIN_TYPES:
                problems.append(f"type: {name} is {tensor.type}; expected one of {', '.join(PLAIN_TYPES)}")
        unexpected = [name for name in self.stored if name not in expected and name not in scales]
        for count, name in enumerate(unexpected):  # few hints, since each compares a name with all others
            hint = did_you_mean(name, expected) if count < _MOST_HINTS else ""
            problems.append(f"unexpected: {name} {list(self.stored[name].shape)}{hint}")
        if problems:
            raise InputError(f"{self.path}: tensors do not match config.json: {listed(problems)}")
