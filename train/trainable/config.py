"""The `trainable` section: which parameters a run trains."""

from typing import Annotated, Any

import pydantic
from pydantic import Field

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.parameters import ROLES, TEXT_ROLES, VISION_ROLES, Role
from maverick_jax.settings.section import Section
from train.objectives.base import Head
from train.trainable.lora import MERGED, LoraConfig
from train.trainable.selection import AdapterUse, Selection


def _once(ids: tuple[int, ...]) -> tuple[int, ...]:
    if twice := [i for place, i in enumerate(ids) if i in ids[:place]]:
        raise ValueError(f"{twice[0]} is there twice")
    return ids


LayerNumber = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,4})$")]
Experts = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), pydantic.AfterValidator(_once)]
"""Experts of a layer, from 0."""


class TrainableConfig(Section):
    """Which parameters are trained. All others keep their values to the bit and have no optimizer state."""

    parameters: tuple[Role, ...] | None = None
    """The parts of the model that are trained, by role. null: all but those of pictures (`vision`, the image encoder,
    `adapter` and `projector`); with `lora`, none."""
    experts: Annotated[dict[LayerNumber, Experts], Field(min_length=1)] | None = None
    """The routed experts that are trained: a list per layer, by the layer's number, from 0; or a file that
    `maverick data experts` made. null: all, if `parameters` includes `experts`."""
    lora: LoraConfig | None = None
    """Low-rank adapters that are trained beside the model; null: none."""

    def selection(self, seed: int = 0) -> Selection:
        """The part of the model that is trained. `seed`: of the adapters' dropout."""
        roles = (TEXT_ROLES if self.lora is None else ()) if self.parameters is None else self.parameters
        chosen = None if self.experts is None else {int(layer): ids for layer, ids in self.experts.items()}
        used = None if self.lora is None else AdapterUse(self.lora.scale, self.lora.dropout, seed)
        return Selection(roles, chosen, used)

    def adapters(self, model: ModelConfig) -> tuple[Head, ...]:
        """The adapters of such a model. They are part of the train state and its checkpoints; exports merge them."""
        return () if self.lora is None else self.lora.adapters(model)

    def makes_experts(self) -> bool:
        """Whether a step computes the routed experts' weights from several stored arrays: see `model.overlays`."""
        return self.experts is not None or (self.lora is not None and "experts" in self.lora.roles)

    def of_pictures(self) -> list[tuple[str, Role]]:
        """(key, role) of everything that is trained and that only pictures pass through."""
        listed = [("trainable.parameters", role) for role in self.parameters or ()]
        adapted = [("trainable.lora.targets", role) for role in (() if self.lora is None else self.lora.roles)]
        return [(key, role) for key, role in listed + adapted if role in VISION_ROLES]

    def pinned(self, model: ModelConfig) -> dict[str, Any]:
        """The values, by key, that a run keeps from its first step to its last, apart from `lora`."""
        chosen = self.selection().experts
        return {
            "parameters": sorted(self.selection().roles),
            "experts": chosen and {str(layer): sorted(chosen.get(layer, ())) for layer in model.moe_layers},
        }

    def misfits(self, model: ModelConfig) -> list[tuple[str, str]]:
        """(key, what is wrong) where the model does not have the parameters that are to be trained."""
        chosen = self.selection()
        if self.parameters is not None:
            there = parameters.roles_of(model)
            for role in [role for role in self.parameters if role not in there]:
                said = f"the model has no parameters of {role}; it has {', '.join(sorted(there))}"
                return [("trainable.parameters", said)]
        if self.lora is not None and (found := self._misfits_of_adapters(self.lora, model)):
            return found
        if self.lora is None and not chosen.parameters(model):
            return [("trainable.parameters", f"nothing is trained; expected some of {', '.join(ROLES)}")]
        return self._misfits_of_experts(chosen, model)

    def _misfits_of_experts(self, chosen: Selection, model: ModelConfig) -> list[tuple[str, str]]:
        if chosen.experts is None:
            return []
        if "experts" not in chosen.roles:
            said = "are chosen, but trainable.parameters leaves routed experts out: add experts"
            return [("trainable.experts", said)]
        moe, count = model.moe_layers, model.num_local_experts
        found = []
        for layer, ids in chosen.experts.items():
            key = f"trainable.experts.{layer}"
            if layer not in moe:
                near = f"; the nearest that is one is {min(moe, key=lambda i: abs(i - layer))}" if moe else ""
                found.append((key, f"layer {layer} is no mixture of experts{near}"))
            elif max(ids) >= count:
                found.append((key, f"no expert {max(ids)}: the layer's experts are 0 to {count - 1}"))
        return found

    def _misfits_of_adapters(self, lora: LoraConfig, model: ModelConfig) -> list[tuple[str, str]]:
        if missing := lora.unmatched(model):
            return [("trainable.lora.targets", f"the model has no parameters of {missing[0]}")]
        if lora.dropout and (merged := [role for role in lora.roles if role in MERGED]):
            why = f"adapters of {merged[0]} are added to the weights, so they have no inputs to drop; expected 0"
            return [("trainable.lora.dropout", why)]
        if both := [role for role in self.selection().roles if role in lora.roles]:
            return [("trainable.parameters", f"{both[0]} has adapters instead (trainable.lora.targets)")]
        return []
