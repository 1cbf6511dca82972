"""A model by its config: the shipped models, and how many parameters one has."""

from maverick_jax import parameters
from maverick_jax.network import Network
from maverick_jax.settings import shipped, validation


class ModelConfig(Network):
    """One Llama 4 model. `ModelConfig.from_name` gives the shipped ones."""

    @classmethod
    def from_name(cls, name: str) -> "ModelConfig":
        """The shipped model `name` (`tiny`, `maverick_17b_128e`, ...). Raises InputError for an unknown name."""
        document = shipped.read_document(shipped.model_path(name), shipped.model_path)
        return validation.validate(cls, document, also=("base",))

    def num_parameters(self) -> int:
        """All parameters: of the text model, embedding and head included, and of the image encoder."""
        return sum(p.size for p in parameters.of_model(self))

    def num_active_parameters(self) -> int:
        """Parameters that one text token passes through, embedding table and head included."""
        return sum(parameters.active(p, self) for p in parameters.of_model(self))
