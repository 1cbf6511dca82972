"""maverick-jax: Llama-4-Maverick-class models in JAX.

Names are imported when they are first used, so that `import maverick_jax` is fast.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maverick_jax.config import ModelConfig as ModelConfig
    from maverick_jax.model.transformer import Maverick as Maverick
    from maverick_jax.pretrained import load_pretrained as load_pretrained
    from maverick_jax.pretrained import save_pretrained as save_pretrained
    from maverick_jax.sharding import MeshConfig as MeshConfig
    from maverick_jax.sharding import ShardingRules as ShardingRules
    from maverick_jax.sharding import make_mesh as make_mesh

    __version__: str

_HOME = {
    "ModelConfig": "maverick_jax.config",
    "Maverick": "maverick_jax.model.transformer",
    "load_pretrained": "maverick_jax.pretrained",
    "save_pretrained": "maverick_jax.pretrained",
    "MeshConfig": "maverick_jax.sharding",
    "ShardingRules": "maverick_jax.sharding",
    "make_mesh": "maverick_jax.sharding",
}

__all__ = [*sorted(_HOME), "__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "text"})


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("maverick-jax")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name == "text":
        return importlib.import_module("maverick_jax.text")
    raise AttributeError(f"module 'maverick_jax' has no attribute {name!r}")
