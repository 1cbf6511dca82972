"""The config of a model: shipped models, and parameter counts."""

from typing import Any

import pydantic_core

from maverick_jax import parameters
from maverick_jax.network import Network
from maverick_jax.settings import shipped, validation
from maverick_jax.settings.strict_yaml import Location


class ModelConfig(Network):
    """The config of a Llama 4 model. `ModelConfig.from_name` reads a shipped one."""

    @classmethod
    def from_name(cls, name: str, **changes: Any) -> "ModelConfig":
        """The config of the shipped model `name` (`tiny`, `maverick_17b_128e`, ...), with `changes` of its keys
        (`hidden_size=256`). Raises InputError for an unknown name or key, and for a value that does not fit."""
        document = shipped.read_document(shipped.model_path(name), shipped.model_path)
        document.data.update(pydantic_core.to_jsonable_python(changes))
        document.places.update(dict.fromkeys(changes, Location(f"ModelConfig.from_name({name!r})")))
        return validation.validate(cls, document, also=("base",))

    def num_parameters(self) -> int:
        """Number of all parameters: those of the text model, including embedding and output matrix, and of the image
        encoder."""
        return sum(p.size for p in parameters.of_model(self))

    def num_active_parameters(self) -> int:
        """Number of parameters that one text token passes through, including embedding and output matrix."""
        return sum(parameters.active(p, self) for p in parameters.of_model(self))
