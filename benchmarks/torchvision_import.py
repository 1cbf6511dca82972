"""Imports torchvision wherever some build of it is: the public image processor needs only its Python half.

Looked for in the environment, then in `.cache/torchvision`, where it stands in no other program's way:

    pip install --no-deps --target .cache/torchvision torchvision==0.28.0     # the version for torch 2.13

A build for CUDA beside a torch without it does not load its operators for detection, and then not at all: those are
declared here, so that the rest does. Import this before transformers, which looks for torchvision only once.
"""

import pathlib
import sys

from torch import library as declarations

from maverick_jax.errors import InputError

FOLDER = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "torchvision"
_DECLARED: list[declarations.Library] = []
"""A declaration lasts as long as its library."""


def import_torchvision() -> str:
    """Its version. Raises InputError where there is none."""
    sys.path.append(str(FOLDER))
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise InputError(f"no torchvision; expected one in the environment or in {FOLDER}") from None
    except RuntimeError:
        if _DECLARED:
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _DECLARED.append(declarations.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            _DECLARED[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return import_torchvision()
    return torchvision.__version__
