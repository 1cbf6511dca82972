"""`maverick eval`: what its arguments ask for."""

import argparse
from typing import Any

from maverick_jax.errors import InputError


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The result as JSON values, also written to `--out`. Raises InputError for arguments that do not go together,
    before a model is loaded."""
    _check(args)
    found = _compared(args) if args.compare else _evaluated(args)
    if args.out:
        from launch.report.evaluation import write_page
        from train.evaluation.results import write_results

        found["written"] = [str(write_results(args.out, found)), str(write_page(args.out, found))]
    return found


def _check(args: argparse.Namespace) -> None:
    only = {"--limit": args.limit, "--shots": args.shots, "--chat": args.chat}
    if (given := [name for name, value in only.items() if value not in (None, False)]) and not args.harness:
        raise InputError(f"{given[0]}: is for tasks of --harness, and there are none")
    if args.allow_code and not args.tasks:
        raise InputError("--allow-code: is for --tasks, and there are none")
    if args.compare:
        sides = [args.checkpoint, *args.compare] if args.checkpoint else args.compare
        if len(sides) != 2:
            raise InputError(
                f"--compare: {len(sides)} models; expected two, as in `--compare A B`, or CHECKPOINT and one"
            )
        if args.config or args.overrides or args.generate or args.harness or args.by_position:
            raise InputError(
                "--compare: compares answers to --tasks; expected no CONFIG, --generate, --by-position or --harness"
            )
    elif args.checkpoint is None:
        raise InputError("maverick eval: CHECKPOINT is missing (a run directory, checkpoint or Hugging Face folder)")


def _evaluated(args: argparse.Namespace) -> dict[str, Any]:
    from train.evaluate import evaluate
    from train.evaluate_tasks import evaluate_harness
    from train.evaluation.harness.run import HarnessSettings

    is_override = args.config is not None and "=" in args.config  # `maverick eval RUN run.eval_batches=4`
    overrides = [args.config, *args.overrides] if is_override else args.overrides
    config = None if is_override else args.config
    found: dict[str, Any] = {"checkpoint": args.checkpoint}
    if args.tasks or not args.harness or config or overrides or args.generate or args.by_position:
        options = {"generate": args.generate, "max_tokens": args.max_tokens, "tasks": args.tasks}
        options |= {"by_position": args.by_position}
        found |= evaluate(args.checkpoint, config, overrides, allow_code=args.allow_code, **options)
    if args.harness:
        settings = HarnessSettings(args.limit, args.shots, args.chat, args.context)
        found["harness"] = evaluate_harness(args.checkpoint, args.harness, settings)
    return found


def _compared(args: argparse.Namespace) -> dict[str, Any]:
    from train.evaluate_tasks import evaluate_tasks
    from train.evaluation.results import compare, read_results, results_path

    first, second = [args.checkpoint, *args.compare] if args.checkpoint else args.compare
    paths = {side: results_path(side) for side in (first, second)}
    models = [side for side, path in paths.items() if path is None]
    if models and not args.tasks:
        raise InputError(
            f"--compare {models[0]}: holds no results of an evaluation; expected --tasks, or a folder of --out"
        )
    if args.tasks and not models:
        raise InputError("--tasks: both have results already; expected none")
    results = {side: read_results(path) for side, path in paths.items() if path is not None}
    for side in models:
        results[side] = {"tasks": evaluate_tasks(side, args.tasks, allow_code=args.allow_code)}
    return {"comparison": compare(results[first], results[second], (first, second))}
