"""`maverick export`: what its arguments ask for."""

import argparse
import logging
from typing import Any

from maverick_jax.errors import InputError

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> Any:
    """The result as JSON values with `--json`, else as text. Raises InputError for arguments that do not go together,
    and as `maverick_jax.pretrained.export`."""
    found = _adapter(args) if args.adapter else _model(args)
    text = found.pop("text", None)
    if args.json:
        return found
    return args.out if text is None else f"{args.out}\n{text}"


def _adapter(args: argparse.Namespace) -> dict[str, Any]:
    from maverick_jax.adapter_folder import export_adapter

    if args.text_only or args.quantize or args.drop or args.sidecar:
        raise InputError("--adapter: exports no model; expected no --text-only, --quantize, --drop and --sidecar")
    export_adapter(args.checkpoint, args.out, dialect=args.dialect, averaged=args.average)
    return {"folder": args.out}


def _model(args: argparse.Namespace) -> dict[str, Any]:
    from maverick_jax.pretrained import export

    if args.no_measure and not args.drop:
        raise InputError("--no-measure: is for --drop, and nothing is dropped")
    export(
        args.checkpoint,
        args.out,
        args.dtype,
        args.max_shard_gb,
        text_only=args.text_only,
        quantize=args.quantize,
        group_size=args.group_size,
        dialect=args.dialect,
        averaged=args.average,
        drop_latents="latents" in args.drop,
        drop_reasoning="reasoning" in args.drop,
        sidecar=args.sidecar,
    )
    return {"folder": args.out} | (_cost_of_dropping(args) if args.drop and not args.no_measure else {})


def _cost_of_dropping(args: argparse.Namespace) -> dict[str, Any]:
    """The held-out losses with and without what `--drop` names; empty, with a warning, if they cannot be measured."""
    from train.evaluate_dropped import loss_of_dropping, said

    try:
        found = loss_of_dropping(args.checkpoint, args.drop, averaged=args.average)
    except InputError as error:
        log.warning("what dropping costs was not measured: %s", error)
        return {}
    return {"held_out_loss": found, "text": said(found, args.drop)}
