"""Import any build of torchvision; the public image processor needs only its Python code.

It is searched in the environment, then in `.cache/torchvision`, where it does not affect other programs:

    pip install --no-deps --target .cache/torchvision torchvision==0.28.0     # the version for torch 2.13

With a torch without CUDA, a CUDA build fails to import because its detection operators are missing; declaring them here
makes the import work. Import this before transformers, which looks for torchvision only once.
"""

import pathlib
import sys

from torch import library as declarations

from maverick_jax.errors import InputError

FOLDER = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "torchvision"


def import_torchvision() -> str:
    """Import torchvision and return its version. Raises InputError if there is none."""
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
