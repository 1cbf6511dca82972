"""What the model's log-probabilities are compared with: nothing, a frozen model, itself without adapters, or stored
numbers. One class per kind, chosen by `objective.reference.kind`."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field

from data.rows.fields import TARGET
from maverick_jax.errors import InputError
from maverick_jax.parameters import Role
from maverick_jax.settings.kinds import Kinds
from maverick_jax.settings.section import Section
from train.objectives.base import Reference, StoredFields
from train.objectives.distill.stored import OfflineTargets

MODEL = "reference"
"""Name of the frozen model among `Objective.references`."""
LABEL = f"{TARGET}label_log_prob"
"""The field of stored log-probabilities of labels."""


class PairReference(Section):
    """The base of all kinds of references."""

    kind: str

    def references(self) -> dict[str, Reference]:
        """The frozen models that training loads."""
        return {}

    def stored_fields(self) -> StoredFields | None:
        """The fields that training reads from a folder."""
        return None


class NoReference(PairReference):
    """`kind: none`: for losses that compare with nothing."""

    kind: Literal["none"] = "none"
    """No reference."""


class CopyReference(PairReference):
    """`kind: copy`: a frozen model, usually the one that the run begins with."""

    kind: Literal["copy"] = "copy"
    """A frozen model."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """A run directory, one of its checkpoints or a Hugging Face folder. null: the model at `model.init_from`."""
    config: Annotated[str, Field(min_length=1)] | None = None
    """A run config (path or shipped name) that is trained first, in the directory `path`, unless that contains its
    finished run; null: the model must exist."""
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    """Dtype of its parameters in memory; keep: as stored."""
    rules: dict[str, str | list[str] | None] = {}
    """Overrides of the run's sharding table (as `mesh.rules`) that apply only to it."""

    def references(self) -> dict[str, Reference]:
        return {} if self.path is None else {MODEL: Reference(self.path, self.dtype, self.rules, self.config)}


class AdaptersOff(PairReference):
    """`kind: adapters_off`: the model without its low-rank adapters. It takes no memory of its own."""

    kind: Literal["adapters_off"] = "adapters_off"
    """The model without its adapters."""


class StoredReference(PairReference):
    """`kind: stored`: log-probabilities of labels that a model computed before, with `maverick data targets`."""

    kind: Literal["stored"] = "stored"
    """Stored log-probabilities."""
    path: Annotated[str, Field(min_length=1)]
    """The folder."""
    model: Annotated[str, Field(min_length=1)] | None = None
    """The model that computes them, or must have computed them: as `path` of `copy`. null: any model's are accepted."""

    @property
    def wanted(self) -> OfflineTargets:
        """How the numbers are stored."""
        return OfflineTargets(path=self.path, top_k=1, dtype="float32")

    def stored_fields(self) -> StoredFields:
        header: dict[str, tuple[str, Any]] = {"temperature": ("objective.reference", 1.0)}
        own = {key: ("objective.reference", value) for key, (_, value) in self.wanted.header.items()}
        return StoredFields(self.path, (LABEL,), header | own, self.model)


REFERENCES = Kinds("reference", PairReference, default="copy")
for _kind in (NoReference, CopyReference, AdaptersOff, StoredReference):
    REFERENCES.register(_kind)

AnyReference = Annotated[PairReference, REFERENCES]
"""A section of any kind of reference; without `kind` it is `copy`."""


def reference_of_run(
    given: PairReference | None, start: str | None, trained: Collection[Role], adapters: bool
) -> PairReference:
    """The reference of a run, with the model that it copies. Arguments as of `Objective.in_run`; `given` None: the
    model without its adapters if they alone are trained, or else a copy of the model at `start`. Raises InputError if
    there is no model to copy, or if more than adapters tells the model from its reference."""
    if given is None:
        given = AdaptersOff() if adapters and not trained else CopyReference()
    if isinstance(given, CopyReference) and given.path is None:
        if start is None:
            raise InputError("objective.reference.path: required, because model.init_from names no model to copy")
        return given.model_copy(update={"path": start})
    if isinstance(given, AdaptersOff) and (trained or not adapters):
        what = f"{', '.join(trained)} would change with it" if trained else "trainable.lora is null"
        raise InputError(f"objective.reference.kind: adapters_off, but {what}; expected adapters alone, or copy")
    return given
