"""Maximal-update scaling (Tensor Programs V, arXiv 2203.03466): the factors of initial weights and updates with which a
wide model learns best at the learning rate of a narrow one, `ModelConfig.base_width`.

The form is the one without factors in the network (their table 3), so that a model computes, exports and is loaded as
without it. With m = hidden_size / base_width:

| role | its arrays | initial weights | Adam's update |
|---|---|---|---|
| `input` | as many inputs at every width: embedding; gains and biases | 1 | 1 |
| `hidden` | inputs and outputs grow | 1 / sqrt(m) | 1 / m |
| `output` | the inputs grow: output matrix, router | 1 / m | 1 / m |

Heads, hidden widths of experts and of dense layers are taken to grow as the residual stream does, and the length of a
head (for which attention would have to divide by its length, not by the root), experts and depth to stay.
"""

from typing import Literal

from maverick_jax.network import Network
from maverick_jax.parameters import Parameter, Role

Growth = Literal["input", "hidden", "output"]

_GROWTH: dict[Role, Growth] = {
    "embed": "input",
    "norms": "input",
    "attention": "hidden",
    "shared": "hidden",
    "experts": "hidden",
    "mlp": "hidden",
    "latent": "hidden",
    "reasoning": "hidden",
    "router": "output",
    "head": "output",
    **dict.fromkeys(("vision", "adapter", "projector"), "input"),  # their inputs are the image encoder's
}


def growth(parameter: Parameter) -> Growth:
    """What grows of a parameter when the text model becomes wider."""
    return _GROWTH[parameter.role] if len(parameter.shape) > 1 else "input"


def ratio(config: Network) -> float:
    """How many times as wide the model is as the one whose learning rate it takes."""
    return 1.0 if config.base_width is None else config.hidden_size / config.base_width


def initial_factor(parameter: Parameter, config: Network) -> float:
    """Factor of the standard deviation of a parameter's initial values."""
    return ratio(config) ** {"input": 0.0, "hidden": -0.5, "output": -1.0}[growth(parameter)]


def update_factor(parameter: Parameter, config: Network) -> float:
    """Factor of Adam's update of a parameter."""
    return ratio(config) ** {"input": 0.0, "hidden": -1.0, "output": -1.0}[growth(parameter)]
