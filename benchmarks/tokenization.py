"""Rate of Llama 4's tokenizer, ours against tiktoken's own batch, on the same text with equally many threads.

The text is cut into documents of several sizes; the two take turns. Last line: one JSON object, whose `ratio` is our
rate over tiktoken's, the worst of the sizes.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

NEIGHBOR = ROOT.parent / "shared" / "data"
SIZES = (100, 1_000, 10_000, 100_000, 10_000_000)
"""Characters of a document; the last takes the text whole."""


def documents(text: str, size: int) -> list[str]:
    """`text` in documents of about `size` characters, cut after line ends."""
    found, held = [], ""
    for line in text.splitlines(keepends=True):
        held += line
        if len(held) >= size:
            found.append(held)
            held = ""
    return [*found, held] if held else found


def rates(texts: list[str], encoders: dict, repeats: int) -> dict[str, float]:
    """Characters per second of each encoder, and the first one's `ratio` to the second: medians over `repeats` turns,
    after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(repeats + 1):
        for name, encode in encoders.items() if turn % 2 else reversed(encoders.items()):
            begin = time.perf_counter()
            encode(texts)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    characters = sum(map(len, texts))
    found = {name: characters / statistics.median(taken) for name, taken in seconds.items()}
    ours, theirs = seconds.values()
    return {**found, "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True))}


def measure(ranks: pathlib.Path, text: str, threads: int, repeats: int) -> dict:
    import tiktoken

    from maverick_jax.text import load_tokenizer
    from maverick_jax.text.tokenizers.llama4 import SPLIT_PATTERN, Llama4Tokenizer

    ours = load_tokenizer(ranks)
    assert isinstance(ours, Llama4Tokenizer)
    ours.threads = threads
    theirs = tiktoken.Encoding("plain", pat_str=SPLIT_PATTERN, mergeable_ranks=ours.ranks, special_tokens={})
    encoders = {
        "ours": ours.encode_batch,
        "tiktoken": lambda texts: theirs.encode_ordinary_batch(texts, num_threads=threads),
    }
    found = {}
    for size in SIZES:
        texts = documents(text, size)
        if encoders["ours"](texts) != encoders["tiktoken"](texts):
            raise SystemExit(f"documents of {size} characters: the ids differ")
        found[size] = rates(texts, encoders, repeats)
    sizes = [
        {"characters": min(size, len(text)), **{k: round(v, 3 if k == "ratio" else None) for k, v in rate.items()}}
        for size, rate in found.items()
    ]
    return {
        "benchmark": "tokenization",
        "ratio": min(s["ratio"] for s in sizes),
        "threads": threads,
        "sizes": sizes,
        "load_average": os.getloadavg()[0],
        "versions": {"tiktoken": tiktoken.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=pathlib.Path, default=NEIGHBOR / "tokenizer" / "llama4_tokenizer.model")
    parser.add_argument("--text", type=pathlib.Path, default=NEIGHBOR / "text" / "tinyshakespeare.txt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", action="store_true", help="nothing but the last line")
    args = parser.parse_args()
    result = measure(args.ranks, args.text.read_text("utf-8"), args.threads, args.repeats)
    if not args.json:
        for size in result["sizes"]:
            print("{characters:>10,} characters a document: ours {ours:>12,} per second, tiktoken {tiktoken:>12,}, "
                  "ratio {ratio}".format(**size))  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
