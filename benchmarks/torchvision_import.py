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


def import_torchvision() -> str:
    """Its version. Raises InputError where there is none."""
    sys.path.append(str(FOLDER))
    try:
        return _version()
    except ModuleNotFoundError:
        raise InputError(f"no torchvision; expected one in the environment or in {FOLDER}") from None
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            declarations.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        return _version()


def _version() -> str:
    import torchvision  # pyright: ignore[reportMissingImports]

    return torchvision.__version__
