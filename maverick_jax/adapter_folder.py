"""Export a run's low-rank adapters as a PEFT adapter folder."""

import pathlib

from maverick_jax.checkpoint.adapters import RECORD, Adapters
from maverick_jax.errors import InputError
from maverick_jax.files import require_new
from maverick_jax.huggingface.peft import write_adapter
from maverick_jax.model_source import open_source
from maverick_jax.pretrained import tokenizer_of


def export_adapter(
    checkpoint: str | pathlib.Path, out: str | pathlib.Path, *, dialect: str | None = None, averaged: bool = False
) -> None:
    """Write the low-rank adapters of the run or checkpoint `checkpoint` to a new PEFT adapter folder `out`, in their
    own dtype, with the model's tokenizer. The base model is not written. `dialect`: tool dialect of the chat template
    that the tokenizer gets. `averaged`: as in `open_source`.

    Raises InputError if there are no adapters, if the run also trains other parameters, or if PEFT cannot represent
    the adapters.
    """
    require_new(pathlib.Path(out))
    source = open_source(checkpoint, averaged=averaged)
    table = Adapters.of(source.meta, checkpoint).shapes if source.meta else {}
    if not table:
        raise InputError(f"{checkpoint}: has no low-rank adapters; expected a run with trainable.lora")
    if others := source.meta.get("trainable", {}).get("parameters"):
        raise InputError(f"{checkpoint}: trains {', '.join(others)} besides its adapters; export the merged model")
    readers = source.factors()
    factors = {name: (readers[name], dtype) for name, (_, dtype) in table.items()}
    base, tokenizer = source.meta.get("init_from"), tokenizer_of(checkpoint)
    settings = source.meta[RECORD]
    write_adapter(out, source.config, settings, factors, base=base, tokenizer=tokenizer, dialect=dialect)
