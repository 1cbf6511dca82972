"""The command `maverick`: find the verb, parse its arguments, run it, and return an exit code.

Heavy imports stay inside the verbs' functions, so `--help` and misspelled verbs answer at once.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from launch import arguments
from launch.parser import Parser, usage
from launch.terminal import Lines, discard_closed_outputs, quiet_runtime, show_bug
from maverick_jax.errors import INTERRUPTED, CheckFailed, InputError, MaverickError
from maverick_jax.settings.redaction import redact_value, redacted
from maverick_jax.settings.section import did_you_mean

OUTPUT_CLOSED = 141


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb of the command line."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Any]
    """Its return value is printed: as JSON with --json, as text otherwise. None prints nothing."""


# ---- verbs -----------------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> Any:
    from train.faults.at_once import NOTHING_LOST, leaves_at_once

    with leaves_at_once(NOTHING_LOST):
        from train.run import main as train

    done = train(args.config, args.overrides)
    return done if args.json else f"{done['run_dir']}: step {done['step']:,}"


def _plan(args: argparse.Namespace) -> None:
    if args.serve:
        _plan_serving(args)
        return
    from launch.plan_stages import plan_run, render
    from train.config_files import read_named

    config, target = read_named(args.config, args.overrides), None
    if args.topology:
        from maverick_jax.accounting.topologies import topology

        target = topology(args.topology)
    found = plan_run(config, target)
    _print(found if args.json else render(found), args.json)
    if not found["fits"]:
        peak, limit = found["peak"]["bytes"], found["peak"]["limit"]
        raise CheckFailed(f"{found['run']} does not fit: {peak:,} of {limit:,} bytes per device")


def _plan_serving(args: argparse.Namespace) -> None:
    from launch.serving_plan import render, serving_plan

    if args.overrides or args.topology:
        raise InputError("--serve: plans an engine for a model; expected no key=value and no --topology")
    found = serving_plan(args.config, args.serve, args.context)
    _print(found if args.json else render(found), args.json)
    if not found["fits"]:
        held = found["bytes_per_device"]
        need = held["weights"] + held["slot"]
        raise CheckFailed(f"no slot fits: weights and one slot are {need:,} of {held['limit']:,} bytes per device")


def _config(args: argparse.Namespace) -> Any:
    if args.action == "list":
        from maverick_jax.settings import shipped

        names = {"runs": shipped.run_names(), "models": shipped.model_names(), "tasks": shipped.task_names()}
        return names if args.json else "\n".join(f"{kind}: {' '.join(found)}" for kind, found in names.items())
    from train import config_files

    if args.action == "schema":
        return config_files.schema() if args.json else json.dumps(config_files.schema(), indent=2)
    if args.config is None:
        raise InputError("maverick config show: CONFIG is missing (a path or a shipped name)")
    found = config_files.public(config_files.read_named(args.config, args.overrides))
    if args.json:
        return found
    from maverick_jax.settings.strict_yaml import dump

    return dump(found).rstrip()


def _data(args: argparse.Namespace) -> Any:
    from data import commands
    from train.config_files import read_config

    config = read_config(args.config, args.overrides)
    if args.action == "inspect":
        rows = {"first": args.first, "count": args.count, "thumbnails": args.html is not None}
        found = commands.inspect(config.data, config.run.seed, **rows)
        if args.html is not None:
            from launch.report.rows import write_rows

            return str(write_rows(found, args.html))
    else:
        verb = {"prepare": commands.prepare, "stats": commands.stats}[args.action]
        found = verb(config.data, config.run.seed)
    return found if args.json else commands.show(found)


def _convert(args: argparse.Namespace) -> Any:
    from data.trajectories import convert

    options = {"format": args.format, "unknown": args.unknown, "malformed": args.malformed, "tools": args.tools}
    found = convert.convert(args.source, args.out, **options)
    return found if args.json else convert.show(found)


def _filter(args: argparse.Namespace) -> Any:
    from data.trajectories.filters import commands

    options = {"format": args.format, "unknown": args.unknown, "malformed": args.malformed, "tools": args.tools}
    options |= {"report_file": args.report, "tokenizer": args.tokenizer}
    config = commands.read_config(args.config, args.overrides)
    found = commands.filter_trajectories(args.source, args.out, config, **options)
    return found if args.json else commands.show(found)


def _tokenizer(args: argparse.Namespace) -> Any:
    from data.tokenizer_training import show, train_tokenizer
    from train.config_files import read_config

    config = read_config(args.config, args.overrides)
    most_bytes = int(args.most_gb * 1e9)
    found = train_tokenizer(config.data, args.out, args.vocab_size, args.source, most_bytes)
    return found if args.json else show(found)


def _targets(args: argparse.Namespace) -> Any:
    from train.make_targets import make_targets, show

    found = make_targets(args.config, args.overrides, out=args.out, shard=args.shard)
    return found if args.json else show(found)


def _experts(args: argparse.Namespace) -> Any:
    from train.expert_scores import choose_experts, show

    options = {"checkpoint": args.checkpoint, "score": args.score, "share": args.share, "tokens": args.tokens}
    found = choose_experts(args.config, args.overrides, out=args.out, **options)
    return found if args.json else show(found)


def _import(args: argparse.Namespace) -> Any:
    from maverick_jax.pretrained import import_checkpoint

    import_checkpoint(args.source, args.out, args.dtype, adapter=args.adapter, averaged=args.average)
    return {"run_dir": args.out} if args.json else args.out


def _export(args: argparse.Namespace) -> Any:
    from launch.export import run

    return run(args)


def _merge(args: argparse.Namespace) -> Any:
    from maverick_jax.merge import merge

    merge(args.models, args.out, args.weights)
    return {"run_dir": args.out} if args.json else args.out


def _generate(args: argparse.Namespace) -> Any:
    from launch.generate import GenerateOptions, generate
    from maverick_jax.inference import Sampling

    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    wanted = GenerateOptions(args.prompt, args.prompts, args.image, args.samples, args.max_tokens, sampling, args.seed)
    found = generate(args.checkpoint, wanted, None if args.json else sys.stdout)
    return found if args.json else None


def _chat(args: argparse.Namespace) -> Any:
    from launch.chat import ONE_USER, converse
    from launch.gate import gate_of
    from maverick_jax.inference import ChatSession, Sampling
    from maverick_jax.inference.engine import SlotEngine
    from maverick_jax.inference.engine.latents import require_latents
    from maverick_jax.pretrained import load_layers
    from maverick_jax.text import load_tokenizer

    tokenizer = load_tokenizer(args.checkpoint)
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    chat = ChatSession(tokenizer, args.dialect, args.system, args.max_tokens, sampling, args.seed, args.latents)
    gate, model = gate_of(args), load_layers(args.checkpoint)
    require_latents(model.config, args.latents)
    with SlotEngine(model, tokenizer, ONE_USER) as engine:
        turns = converse(engine, chat, sys.stdin, None if args.json else sys.stdout, gate)
    return {"turns": turns} if args.json else None


def _serve(args: argparse.Namespace) -> None:
    import importlib.util

    if missing := [name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)]:
        raise InputError(f"maverick serve needs the extra `serve` (pip install {' '.join(missing)})")
    from launch.serve.run import serve

    serve(args)


def _eval(args: argparse.Namespace) -> Any:
    from launch.evaluation import run
    from train.evaluation.tables import show

    found = run(args)
    return found if args.json else show(found)


def _score(args: argparse.Namespace) -> Any:
    from train.score import score, show

    options = {name: getattr(args, name) for name in ("out", "format", "dialect", "checks", "policy")}
    found = score(args.checkpoint, args.runs, **options)
    return found if args.json else show(found)


def _doctor(args: argparse.Namespace) -> None:
    from launch.doctor import doctor, render, require_healthy

    found = doctor(args.run_dir)
    _print(found if args.json else render(found), args.json)
    require_healthy(found)


def _launch(args: argparse.Namespace) -> Any:
    from launch.clusters.launch import launch, show

    found = launch(args)
    return found if args.json else show(found)


def _report(args: argparse.Namespace) -> Any:
    from launch.report.write import write_report

    path = str(write_report(args.run_dirs, args.prompt, args.max_tokens))
    return {"report": path} if args.json else path


def _runs(args: argparse.Namespace) -> Any:
    from launch.runs import table

    found = table.runs(args.folder)
    return table.as_json(found) if args.json else table.show(found, terminal=sys.stdout.isatty())


def _watch(args: argparse.Namespace) -> Any:
    from launch.runs.status import status
    from launch.runs.watch import watch

    return status(args.run_dir).as_json() if args.json else watch(args.run_dir, once=args.once)


VERBS = {
    "train": Verb("train a model; the same command again resumes the run", arguments.run, _train),
    "plan": Verb("estimate memory, FLOPs and traffic of a run, and whether it fits", arguments.plan, _plan),
    "config": Verb(
        "list the shipped configs, show one with every default, or print the schema", arguments.config, _config
    ),
    "data": Verb("prepare a run's data ahead of time, look at rows, or count tokens", arguments.data, _data),
    "data convert": Verb("convert trajectories of any known format to ours", arguments.convert, _convert),
    "data filter": Verb("filter trajectories and report why each was dropped", arguments.filter, _filter),
    "data targets": Verb("compute and store teacher targets for a run's data", arguments.targets, _targets),
    "data tokenizer": Verb("train a tokenizer on a run's sources", arguments.tokenizer, _tokenizer),
    "data experts": Verb("choose the experts that a run's data uses most", arguments.experts, _experts),
    "import": Verb("convert a Hugging Face folder to a checkpoint", arguments.import_, _import),
    "export": Verb("convert a checkpoint to a Hugging Face folder", arguments.export, _export),
    "merge": Verb("average models of one shape, with weights", arguments.merge, _merge),
    "generate": Verb("generate text from a prompt", arguments.generate, _generate),
    "chat": Verb("chat with a model in the terminal", arguments.chat, _chat),
    "serve": Verb("serve a model over HTTP, with OpenAI's routes", arguments.serve, _serve),
    "eval": Verb("evaluate a model on a run's held-out data", arguments.evaluate, _eval),
    "score": Verb("score trajectories with a reward model", arguments.score, _score),
    "doctor": Verb("verify every checkpoint of a run", arguments.run_dir, _doctor),
    "launch": Verb("render or start a job: on this machine, SLURM, Kubernetes, SkyPilot", arguments.launch, _launch),
    "report": Verb("write one HTML report about a run, or of several compared", arguments.report, _report),
    "watch": Verb("show a run live in the terminal", arguments.watch, _watch),
    "runs": Verb("list the runs of a folder with their state", arguments.runs, _runs),
}


# ---- main ------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: sys.argv[1:]) and return the exit code. Without `argv`, Ctrl-C ends the
    process here."""
    quiet_runtime()
    if argv is None:
        sys.excepthook = show_bug
        gc.set_threshold(50_000, 20, 50)  # imports and traces make many objects that stay: a tenth of a start
    logging.basicConfig(level=logging.INFO, handlers=[Lines()], format="%(levelname).1s %(name)s: %(message)s")
    logging.getLogger("jax").setLevel(logging.WARNING)  # it warns about every absent accelerator
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax and Grain log every step
    try:
        return _exit_code(argv)
    except (BrokenPipeError, SystemExit) as error:
        # rich turns a broken pipe into SystemExit(1)
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        discard_closed_outputs()
        return OUTPUT_CLOSED


def _exit_code(argv: Sequence[str] | None) -> int:
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return 0
    except MaverickError as error:
        with contextlib.suppress(BrokenPipeError):  # the code counts, even if nobody reads the message
            print(error, file=sys.stderr)
        discard_closed_outputs()
        return error.exit_code
    except KeyboardInterrupt:
        if argv is None:  # a process of its own: to free a half-compiled program could crash
            from train.faults.at_once import leave_now

            leave_now(INTERRUPTED, "interrupted")
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _dispatch(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage({name: verb.help for name, verb in VERBS.items()}))
    elif argv[0] == "--version":
        from importlib.metadata import version

        print(version("maverick-jax"))
    elif " ".join(argv[:2]) in VERBS:
        _run_verb(" ".join(argv[:2]), argv[2:])
    elif argv[0] not in VERBS:
        near = did_you_mean(argv[0], VERBS)
        raise InputError(f"maverick: no verb {argv[0]!r}{near} (verbs: {', '.join(VERBS)})")
    else:
        _run_verb(argv[0], argv[1:])


def _run_verb(name: str, argv: list[str]) -> None:
    verb = VERBS[name]
    parser = Parser(prog=f"maverick {name}", description=verb.help, allow_abbrev=False)
    verb.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    try:
        args = parser.parse_intermixed_args(argv)
    except SystemExit:  # --help has been printed
        return
    result = verb.run(args)
    if result is not None:
        _print(result, args.json)


def _print(result: Any, as_json: bool) -> None:
    print(json.dumps(redacted(result)) if as_json or not isinstance(result, str) else redact_value(result))


if __name__ == "__main__":
    sys.exit(main())
