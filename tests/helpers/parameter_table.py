"""The table of parameters in docs/architecture.md, generated from their declarations.

`python -m tests.helpers.parameter_table` updates it.
"""

import itertools
import pathlib

from maverick_jax import ModelConfig, parameters
from maverick_jax.latent import LatentConfig
from maverick_jax.network import Balance, LayerSpec, VisionConfig
from maverick_jax.parameters import VISION_ROLES, Parameter
from maverick_jax.reasoning import Loops, ReasoningHeads

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "architecture.md"
BEGIN, END = "<!-- parameters -->\n", "<!-- end of parameters -->\n"

TEXT = {1009: "V", 101: "D", 14: "N", 7: "K", 6: "H", 47: "F", 53: "F of dense layers", 5: "E", 1: "1", 11: "S"}
VISION = {24: "W", 3: "N", 8: "H", 96: "F", 43: "A", 37: "patches + 1", 20: "C * patch^2", 101: "D"}
"""The symbol of each size in `CONFIG`. No two sizes of one part of the model are equal."""

CONFIG = ModelConfig(
    vocab_size=1009,
    hidden_size=101,
    num_hidden_layers=2,
    num_attention_heads=14,
    num_key_value_heads=7,
    head_dim=6,
    intermediate_size=47,
    intermediate_size_mlp=53,
    num_local_experts=5,
    interleave_moe_layer_step=2,
    balance=Balance(kind="loss_free_bias"),
    latent=LatentConfig(token_id=0),
    reasoning_heads=ReasoningHeads(schema_heads=11),
    vision=VisionConfig(
        hidden_size=24,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=12,
        patch_size=2,
        num_channels=5,
        vision_output_dim=43,
        image_token_index=0,
    ),
)


def table() -> str:
    """The table in Markdown. Arrays that differ only in their names share a line."""
    lines = ["| path | shape | logical axes | role |", "|---|---|---|---|"]
    for facts, group in itertools.groupby(_listed(), key=_facts):
        lines.append(f"| {', '.join(f'`{p.name}`' for p in group)} | {' | '.join(facts)} |")
    return "\n".join(lines) + "\n"


def _listed() -> list[Parameter]:
    specs = (LayerSpec(moe=moe, rope=True, reasoning=not moe) for moe in (False, True))
    dense, moe = (parameters.of_layer(CONFIG, spec) for spec in specs)
    layer = dense + [p for p in moe if p not in dense]
    vision = [p for p in parameters.of_model(CONFIG) if p.role in VISION_ROLES]
    loops = parameters.loops(CONFIG.model_copy(update={"loops": Loops(periods=(0, 1))}))
    latent = [p for p in parameters.of_model(CONFIG) if p.role == "latent"]
    return [*parameters.embedding(CONFIG), *layer, *loops, *parameters.output(CONFIG), *latent, *vision]


def _facts(p: Parameter) -> tuple[str, str, str]:
    letters = VISION if p.role in VISION_ROLES else TEXT
    shape = ["layers"] * (p.stacked is not None) + [letters.get(n, str(n)) for n in p.shape]
    return ", ".join(shape), ", ".join(map(str, p.axes)), p.role


def written(document: str) -> str:
    """The document with the current table."""
    before, rest = document.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
