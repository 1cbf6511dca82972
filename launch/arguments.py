"""Arguments of each `maverick` verb."""

import argparse
import re

CHECKPOINT_HELP = "run directory, checkpoint or Hugging Face folder"


def run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="config file, or the name of a shipped config")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="change one config value, such as optimizer.learning_rate=3e-4",
    )


def plan(parser: argparse.ArgumentParser) -> None:
    run(parser)
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="compile the step for devices that need not be at hand, such as h200:512, v5p:8x8x8 or 2*v6e:16x16",
    )
    parser.add_argument(
        "--serve",
        metavar="DEVICES",
        help="memory of an engine instead of a run, such as h200:8; CONFIG is a shipped model or a checkpoint",
    )
    parser.add_argument(
        "--context", type=int, default=131_072, metavar="N", help="--serve: most tokens of a text (default: 131072)"
    )


def config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "show", "schema"])
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="config to show: a file, or a shipped name")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="change one config value")


def data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["prepare", "inspect", "stats"])
    run(parser)
    parser.add_argument("--first", type=int, default=0, metavar="ROW", help="inspect: first row to show (default: 0)")
    parser.add_argument(
        "--count", type=int, default=2, metavar="N", help="inspect: number of rows to show (default: 2)"
    )
    parser.add_argument("--html", metavar="FILE", help="inspect: write the rows to FILE, with thumbnails of pictures")


def convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="file of trajectories, or a folder of such files")
    parser.add_argument("out", metavar="OUT", help="file to write: one JSON object per line, in our format")
    parser.add_argument("--format", metavar="NAME", help="format of SOURCE (default: detected per file)")
    choices = ["keep", "refuse"]
    parser.add_argument(
        "--unknown", choices=choices, default="keep", help="unknown fields: keep them in `extra`, or reject"
    )
    parser.add_argument(
        "--malformed", choices=["stop", "skip"], default="stop", help="malformed records: stop, or skip and count"
    )
    parser.add_argument("--tools", metavar="FILE", help="JSON tool declarations, for trajectories without any")


def filter(parser: argparse.ArgumentParser) -> None:
    convert(parser)
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="change one filter setting, such as filter.loops=4"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with sections `filter` and `scrub`")
    parser.add_argument("--report", metavar="FILE", help="JSON file to write: what was dropped, and why")
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer that filter.max_tokens counts with")


def targets(parser: argparse.ArgumentParser) -> None:
    run(parser)
    parser.add_argument("--out", metavar="DIR", help="folder to create or continue (default: objective.targets.path)")
    parser.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="i/n", help="compute shard i of n, with i from 0"
    )


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of 1 or more")
    return int(text)


def _natural(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number")
    return int(text)


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a port, 0 to 65535")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard; expected i/n with i from 0 to n - 1, such as 0/4")
    return int(found[1]), int(found[2])


def tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="config file, or the name of a shipped config")
    parser.add_argument("out", metavar="OUT", help="folder to create")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="change one config value")
    what = "entries: 256 bytes, what is learned, and control tokens (default: 32,000)"
    parser.add_argument("--vocab-size", type=int, default=32_000, metavar="N", help=what)
    what = "read only this source; may be given several times"
    parser.add_argument("--source", action="append", default=[], metavar="NAME", help=what)
    what = "maximum text to read of each source, in GB (default: 1)"
    parser.add_argument("--most-gb", type=float, default=1.0, metavar="GB", help=what)


def experts(parser: argparse.ArgumentParser) -> None:
    run(parser)
    parser.add_argument("--checkpoint", metavar="PATH", help="model to score (default: model.init_from)")
    parser.add_argument(
        "--score", choices=["gate", "token"], default="gate", help="score by gate values or by token counts"
    )
    parser.add_argument(
        "--share", type=float, metavar="P", help="share of each layer's score to cover (default: 0.1 gate, 0.2 token)"
    )
    parser.add_argument("--tokens", type=int, default=131_072, metavar="N", help="tokens to run (default: 131,072)")
    parser.add_argument("--out", metavar="FILE", help="file to write, for trainable.experts")


def import_(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="Hugging Face folder, run directory or checkpoint")
    parser.add_argument("out", metavar="OUT", help="run directory to create")
    choices = ["keep", "float32", "bfloat16"]
    parser.add_argument("--dtype", choices=choices, default="keep", help="dtype of the parameters (default: as stored)")
    parser.add_argument("--adapter", metavar="FOLDER", help="PEFT adapter to merge into the model")
    what = "with the averages that the run kept (optimizer.average) in the place of what it trained"
    parser.add_argument("--average", action="store_true", help=what)


def merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help=f"two or more; each a {CHECKPOINT_HELP}")
    parser.add_argument("out", metavar="OUT", help="run directory to create")
    what = "one per model, separated by commas; they are divided by their sum (default: equal)"
    parser.add_argument("--weights", type=_numbers, metavar="W,...", help=what)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers separated by commas, such as 0.7,0.3") from None


def export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("out", metavar="OUT", help="folder to create")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="default: bfloat16")
    parser.add_argument(
        "--max-shard-gb", type=float, default=5.0, metavar="GB", help="maximum file size in GB (default: 5)"
    )
    what = "with the averages that the run kept (optimizer.average) in the place of what it trained"
    parser.add_argument("--average", action="store_true", help=what)
    parser.add_argument("--text-only", action="store_true", help="omit the image encoder")
    parser.add_argument(
        "--quantize", choices=["int8", "int4"], help="quantize feed-forward weights (compressed-tensors)"
    )
    parser.add_argument(
        "--group-size", type=int, choices=[32, 64, 128], default=128, help="inputs per scale (default: 128)"
    )
    parser.add_argument(
        "--dialect", metavar="NAME", help="export as an instruct model, with this tool-call dialect's chat template"
    )
    what = "what to leave out although the model then computes something else: reasoning heads and loops, or latents"
    parser.add_argument("--drop", choices=["reasoning", "latents"], action="append", default=[], help=what)
    what = "with --drop: do not measure what that costs on the run's held-out data, with the whole model in memory"
    parser.add_argument("--no-measure", action="store_true", help=what)
    what = "keep reasoning heads, loops and latents that are not dropped in a folder beside the plain model"
    parser.add_argument("--sidecar", action="store_true", help=what)
    what = "export only the low-rank adapters, as a PEFT adapter folder, in their own dtype"
    parser.add_argument("--adapter", action="store_true", help=what)


def generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("--prompt", metavar="TEXT", help="text to continue")
    parser.add_argument("--prompts", metavar="FILE", help="file of prompts: one per line, or JSON lines with `prompt`")
    parser.add_argument(
        "--samples", type=_count, default=1, metavar="N", help="number of continuations of each prompt (default: 1)"
    )
    parser.add_argument(
        "--image", metavar="FILE", action="append", default=[], help="image to show before each prompt; repeatable"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="maximum number of new tokens (default: 128)"
    )
    _sampling(parser)


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="sampling temperature (default: 1); 0 is greedy"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="sample from the K most likely tokens (default: 0, all)"
    )
    most = "sample from the most likely tokens that together reach probability P (default: 1, all)"
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help=most)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="sampling seed (default: 0)")


def _latents(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--latents", type=int, default=0, metavar="N", help="latent thoughts before each answer (default: 0)"
    )


def chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("--dialect", metavar="NAME", help="tool-call dialect (default: the checkpoint's, else "
                        "meta_pythonic)")  # fmt: skip
    parser.add_argument("--system", metavar="TEXT", default="", help="system message")
    parser.add_argument(
        "--max-tokens", type=int, default=512, metavar="N", help="maximum tokens per answer (default: 512)"
    )
    _latents(parser)
    _sampling(parser)
    _gate(parser)


def _gate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", metavar="FILE", help="policy file; calls that it does not allow are held back")
    risk = "run with objective.kind: reward, whose judgement of calls also counts (with --policy)"
    parser.add_argument("--risk-model", metavar="CHECKPOINT", help=risk)


def serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("--name", metavar="NAME", help="the model's name in requests (default: the folder's)")
    parser.add_argument(
        "--slots", type=_count, default=8, metavar="N", help="texts that are written at the same time (default: 8)"
    )
    parser.add_argument(
        "--context", type=_count, default=4096, metavar="N",
        help="maximum tokens of a prompt and its answer (default: 4096)"
    )  # fmt: skip
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="default: float32")
    parser.add_argument("--dialect", metavar="NAME", help="tool-call dialect (default: the checkpoint's, else "
                        "meta_pythonic)")  # fmt: skip
    _latents(parser)
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="address to listen on (default: this "
                        "machine alone, 127.0.0.1)")  # fmt: skip
    parser.add_argument(
        "--port", type=_port, default=8000, metavar="N", help="port (default: 8000); 0 takes a free one"
    )
    parser.add_argument("--remote", action="store_true", help="allow an address that other machines reach")
    name = "name under which clients reach this server, such as box.example (repeatable)"
    parser.add_argument("--allow-host", metavar="NAME", action="append", default=[], help=name)
    key = "file with the key, created if absent (default: serve_key in the cache folder)"
    parser.add_argument("--key-file", metavar="FILE", help=f"{key}; MAVERICK_SERVE_KEY comes first")
    parser.add_argument("--image-root", metavar="DIR", help="folder whose pictures requests may name by file: URLs")
    begin = "put the token that begins texts before prompts of token ids that lack it (completions)"
    parser.add_argument("--begin-prompts", action="store_true", help=begin)
    _gate(parser)


def score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run with objective.kind: reward, or one of its steps"
    )
    parser.add_argument("runs", metavar="RUNS", help="file of trajectories, or a folder of such files")
    parser.add_argument("--out", metavar="FILE", help="file to write: the scores of a trajectory per line, as JSON")
    parser.add_argument("--format", metavar="NAME", help="format of RUNS (default: detected per file)")
    parser.add_argument("--dialect", metavar="NAME", help="dialect of calls (default: that of the tokenizer)")
    parser.add_argument("--checks", action="store_true", help="also check what the rewards are paid for")
    parser.add_argument("--policy", metavar="FILE", help="policy file that says which tools change something")


def evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help=CHECKPOINT_HELP)
    whose = "config file, or the name of a shipped config (default: the config of the run that CHECKPOINT belongs to)"
    parser.add_argument("config", metavar="CONFIG", nargs="?", help=whose)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="change one config value")
    parser.add_argument(
        "--generate", type=_count, default=0, metavar="N", help="also generate N assistant turns and score them"
    )
    parser.add_argument(
        "--max-tokens", type=_count, default=256, metavar="N", help="maximum tokens per generated turn (default: 256)"
    )
    what = "answer tasks: a shipped name, a YAML file, or JSON lines of questions (repeatable)"
    parser.add_argument("--tasks", metavar="NAME_OR_FILE", action="append", default=[], help=what)
    what = "also the held-out loss by position in the document, by source"
    parser.add_argument("--by-position", action="store_true", help=what)
    what = "let tasks run programs that the model writes, in a sandbox"
    parser.add_argument("--allow-code", action="store_true", help=what)
    what = "compare CHECKPOINT with OTHER, or two without CHECKPOINT: checkpoints, with --tasks, or results (--out)"
    parser.add_argument("--compare", metavar="OTHER", nargs="+", default=[], help=what)
    parser.add_argument("--out", metavar="FOLDER", help="write evaluation.json, with every answer, and evaluation.html")
    what = "answer a task of lm-evaluation-harness: its name, or a YAML file (repeatable)"
    parser.add_argument("--harness", metavar="TASK", action="append", default=[], help=what)
    parser.add_argument("--limit", type=_count, metavar="N", help="with --harness: examples of each task")
    parser.add_argument("--shots", type=_natural, metavar="N", help="with --harness: worked examples before each")
    parser.add_argument("--chat", action="store_true", help="with --harness: prompts are the user's messages")
    what = "with --harness: most tokens of prompt and answer (default: 4096)"
    parser.add_argument("--context", type=_count, default=4096, metavar="N", help=what)


def run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="directory of the run (run.dir)")


def report(parser: argparse.ArgumentParser) -> None:
    what = "directory of a run (run.dir); several are compared"
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help=what)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="let the newest checkpoint continue this text first, as the report's sample"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=400, metavar="N", help="with --prompt: maximum number of new tokens"
    )


def runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", default="runs", help="folder of runs (default: runs)")


def watch(parser: argparse.ArgumentParser) -> None:
    run_dir(parser)
    parser.add_argument("--once", action="store_true", help="print the view once and end")


def launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", choices=["local", "slurm", "kubernetes", "gke", "skypilot"],
                        help="local, slurm, kubernetes, gke (Kubernetes with GKE's selectors) or skypilot")  # fmt: skip
    run(parser)
    start = "start it: local runs it here, slurm calls sbatch, kubernetes kubectl, skypilot sky"
    parser.add_argument("--submit", action="store_true", help=start)
    parser.add_argument("--out", metavar="DIR", help="folder to write the job to (default: print it)")
    parser.add_argument("--run-dir", metavar="DIR", help="the run's directory: run.dir, on a disk that all nodes share")
    what = "what a node has: h100, h200, b200, gpu; or all of it, such as h200:64x8, v5p:8x8x8 or 2*v6e:16x16"
    parser.add_argument("--accelerator", metavar="NAME", help=f"{what} (default: run.hardware)")
    parser.add_argument("--nodes", type=_count, metavar="N", help="machines (default: as many as the mesh needs, or 1)")
    parser.add_argument("--devices-per-node", type=_count, metavar="N", help="accelerators per machine (default: 8)")
    parser.add_argument(
        "--processes", type=_count, metavar="N", help="local, slurm: processes per machine (default: 1)"
    )
    more = "maximum number of restarts (default: 50)"
    parser.add_argument("--restart", action="store_true", help="local: start it, and again after codes 75, 76 and 77")
    parser.add_argument("--max-restarts", type=_natural, metavar="N", help=more)
    parser.add_argument("--image", metavar="IMAGE", help="container image with this package")
    parser.add_argument("--venv", metavar="DIR", help="local, slurm: virtual environment with this package")
    parser.add_argument("--partition", metavar="NAME", help="slurm: partition")
    parser.add_argument("--account", metavar="NAME", help="slurm: account")
    parser.add_argument("--time", metavar="TIME", help="slurm: time limit, such as 24:00:00")
    parser.add_argument("--exclude", metavar="NODES", help="slurm, kubernetes: nodes not to use, separated by commas")
    parser.add_argument("--namespace", metavar="NAME", help="kubernetes: namespace (default: the current one)")
    parser.add_argument("--queue", metavar="NAME", help="kubernetes: Kueue's local queue")
    parser.add_argument("--claim", metavar="NAME", help="kubernetes: volume claim that holds runs and data "
                        "(default: maverick)")  # fmt: skip
