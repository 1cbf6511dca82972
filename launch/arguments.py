"""The arguments of each verb of the command `maverick`."""

import argparse
import re

CHECKPOINT_HELP = "a run directory, a checkpoint, or a Hugging Face folder"


def run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a file, or the name of a shipped config")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="dotted: optimizer.learning_rate=3e-4")


def config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "show", "schema"])
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="for show: a file, or the name of a shipped config")
    parser.add_argument("overrides", metavar="key=value", nargs="*")


def data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["prepare", "inspect", "stats"])
    run(parser)
    parser.add_argument("--first", type=int, default=0, metavar="ROW", help="for inspect: first row of the stream")
    parser.add_argument("--count", type=int, default=2, metavar="N", help="for inspect: number of rows")


def convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a file of agent runs, or a folder of such files")
    parser.add_argument("out", metavar="OUT", help="a file to make: our form, one JSON object a line")
    parser.add_argument("--format", metavar="NAME", help="of SOURCE; default: each file's first record tells")
    choices = ["keep", "refuse"]
    parser.add_argument("--unknown", choices=choices, default="keep", help="fields of no known meaning; keep: in extra")
    parser.add_argument("--malformed", choices=["stop", "skip"], default="stop", help="records; skip: and count them")
    parser.add_argument("--tools", metavar="FILE", help="JSON of the tools that runs had which declare none")


def filter(parser: argparse.ArgumentParser) -> None:
    convert(parser)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="dotted: filter.loops=4")
    parser.add_argument("--config", metavar="FILE", help="YAML with `filter` and `scrub`")
    parser.add_argument("--report", metavar="FILE", help="a file to make: what was dropped and why, as JSON")
    parser.add_argument("--tokenizer", metavar="PATH", help="for filter.max_tokens")


def targets(parser: argparse.ArgumentParser) -> None:
    run(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="the folder to make or go on with; default: objective.targets.path"
    )
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="i/n", help="the i-th of n jobs, from 0")


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of 1 or more")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard; expected i/n with i from 0 to n - 1, such as 0/4")
    return int(found[1]), int(found[2])


def experts(parser: argparse.ArgumentParser) -> None:
    run(parser)
    parser.add_argument("--checkpoint", metavar="PATH", help="the model to look at; default: model.init_from")
    parser.add_argument("--score", choices=["gate", "token"], default="gate", help="what an expert is chosen by")
    parser.add_argument("--share", type=float, metavar="P", help="of a layer's scores; default: 0.1 gate, 0.2 token")
    parser.add_argument("--tokens", type=int, default=131_072, metavar="N", help="how many to look at")
    parser.add_argument("--out", metavar="FILE", help="a file to make: what optimizer.experts reads")


def import_(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a Hugging Face folder, a run directory or one checkpoint")
    parser.add_argument("out", metavar="OUT", help="a run directory to make")
    choices = ["keep", "float32", "bfloat16"]
    parser.add_argument("--dtype", choices=choices, default="keep", help="of stored parameters; keep: the source's")


def export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("out", metavar="OUT", help="a folder to make")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="GB", help="most 10^9 bytes of a file")
    parser.add_argument("--text-only", action="store_true", help="leave out the image encoder")
    parser.add_argument("--quantize", choices=["int8", "int4"], help="feed-forward weights (compressed-tensors)")
    parser.add_argument("--group-size", type=int, choices=[32, 64, 128], default=128, help="inputs that share a scale")
    parser.add_argument("--dialect", metavar="NAME", help="of tool calls: write its chat template, as instruct models")


def generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("--prompt", metavar="TEXT", required=True)
    parser.add_argument(
        "--image", metavar="FILE", action="append", default=[], help="shown before the prompt; again for more"
    )
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: the likeliest token each time")
    parser.add_argument("--seed", type=int, default=0, metavar="S")


def chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("--dialect", metavar="NAME", help="how tools are written; default: as the folder says, or "
                        "meta_pythonic")  # fmt: skip
    parser.add_argument("--system", metavar="TEXT", default="", help="what the model is told first")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="most tokens of an answer")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: the likeliest token each time")
    parser.add_argument("--seed", type=int, default=0, metavar="S")


def evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    run(parser)
    parser.add_argument("--generate", type=_count, default=0, metavar="N", help="turns of agent runs to write as well")
    parser.add_argument("--max-tokens", type=_count, default=256, metavar="N", help="most tokens of each")


def run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="what run.dir named")
