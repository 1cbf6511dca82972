#!/usr/bin/env python
"""ProsQA (Coconut, arXiv 2412.06769): right answers of text, latents, pauses and no thoughts.

    python benchmarks/prosqa.py --work FOLDER --test prosqa.jsonl [--seed 0] [--variants start text latents pauses none]

A question is a graph and a root; which of two nodes is reached from it? Nodes are letters, drawn anew in each question,
and the path is the thought. Training rows are made here by the published rule, new in every update; judged are the rows
of `--test` and 300 made ones. `text`, `latents` and `pauses` go on from `start`, which has thoughts in text. The last
line is one JSON object.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from benchmarks import latent_thoughts as chain
from data.graders.figures import figure as figure_of
from data.latents import LatentSteps
from data.order import derive
from data.sources import SOURCES
from data.sources.base import MadeBlock, MadeSource, Positive
from data.trajectories.kinds import TokenKind
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import load_pretrained
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import Tokenizer, load_tokenizer
from maverick_jax.text.chat.reply import LATENT, THINKING

LETTERS, MARK = string.ascii_letters, ";"
"""Nodes; what stands after each edge."""
STEPS, LONGEST = 4, 6
"""Steps that latents replace; longest path."""


# ---- questions -------------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    """Nodes are numbers."""

    edges: list[tuple[int, int]]
    root: int
    options: tuple[int, int]
    path: list[int]
    """From the node after the root to the right option."""


def reached(edges: Sequence[tuple[int, int]], root: int) -> dict[int, int]:
    """The nodes that are reached from the root, each with the node before it on a shortest path."""
    after = collections.defaultdict(list)
    for one, other in edges:
        after[one].append(other)
    found, queue = {root: -1}, [root]
    for node in queue:
        for other in after[node]:
            if other not in found:
                found[other] = node
                queue.append(other)
    return found


def path_to(node: int, before: dict[int, int]) -> list[int]:
    """The nodes after the root."""
    path = []
    while before[node] >= 0:
        path.append(node)
        node = before[node]
    return path[::-1]


NODES, FEW = (19, 27), (6, 10)
"""Nodes of a question, of which those that nothing leads to or from are not seen; of the first, easy ones."""


def made(random: np.random.RandomState, nodes: tuple[int, int] = NODES) -> Question:
    """A question by the published rule: nodes are added one by one, each with Poisson(1.5) edges from earlier nodes,
    deep ones rather than others; 35% of the nodes may descend from the first root but not the second, 35% from the
    second alone, and the others from both. The options are nodes without edges from them, one below each root alone.
    What the rule leaves open (fewer nodes without an edge to them, the deepest option) is as in the published rows."""
    while True:
        edges, below, depth = [], {0: 1, 1: 2}, {0: 0, 1: 0}
        for node in range(2, random.randint(nodes[0], nodes[1] + 1)):
            kept = [{0, 1}, {0, 2}, {0, 1, 2, 3}][np.searchsorted([0.35, 0.7], random.random_sample())]
            candidates = [other for other in below if below[other] in kept]
            weights = np.array([depth[other] * 1.5 + 1 for other in candidates])
            count = min(max(random.poisson(1.5), int(random.random_sample() < 0.75)), len(candidates))
            chosen = random.choice(len(candidates), count, replace=False, p=weights / weights.sum())
            before = [candidates[i] for i in chosen]
            edges += [(other, node) for other in before]
            below[node] = int(np.bitwise_or.reduce([below[other] for other in before] or [0]))
            depth[node] = 1 + min((depth[other] for other in before), default=-1)
        root = int(random.randint(2))
        if (question := _asked(edges, below, root, random, 3 if nodes == NODES else 1)) is not None:
            return question


def _asked(edges, below: dict[int, int], root: int, random: np.random.RandomState, least: int) -> Question | None:
    """None: no option is `least` steps from its root, or one is further than the test's are."""
    ends = set(below) - {one for one, _ in edges}
    own, other = reached(edges, root), reached(edges, 1 - root)
    far = [len(path_to(node, own)) if node in ends and below[node] == root + 1 else 0 for node in own]
    wrong = [node for node in other if node in ends and below[node] == 2 - root and node != 1 - root]
    if not wrong or not least <= max(far) <= LONGEST:
        return None
    right = list(own)[int(np.argmax(far))]
    options = (right, wrong[random.randint(len(wrong))])
    return Question([edges[i] for i in random.permutation(len(edges))], root, options, path_to(right, own))


def published(line: str) -> Question:
    """A question of the file, its edges in the order of its sentences."""
    row = json.loads(line)
    number = {name: i for i, name in enumerate(row["idx_to_symbol"])}
    words = [sentence.removeprefix("Every ").split() for sentence in row["question"].split(". ")[:-1]]
    steps = [number[step.rstrip(".").split()[-1]] for step in row["steps"]]
    edges = [(number[sentence[0]], number[sentence[-1]]) for sentence in words]
    return Question(edges, row["root"], (row["target"], row["neg_target"]), steps)


# ---- rows ------------------------------------------------------------------------------------------------------------


def written(
    question: Question, replaced: int, thoughts: bool, tokenizer: Tokenizer, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and kinds of a question, with `replaced` latents in the place of its first steps, also where it has fewer."""
    *letters, mark = np.array(tokenizer.encode_batch([*LETTERS, MARK]), np.int32)[:, 0].tolist()
    letters = np.array(letters)[random.permutation(len(letters))]
    ids = lambda nodes: letters[np.array(nodes, np.int64)].tolist()
    options = question.options if random.randint(2) else question.options[::-1]
    asked = [i for edge in question.edges for i in (*ids(edge), mark)]
    asked += ids([question.root, *options])
    answer = ids(question.path[-1:])
    return with_thought(
        asked, [ids([node]) for node in question.path], answer, replaced if thoughts else None, tokenizer
    )


def with_thought(
    asked: list[int], steps: Sequence[list[int]], answer: list[int], replaced: int | None, tokenizer: Tokenizer,
    ends: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Ids and kinds of a document: what is asked, a thought, and the answer. Latents, `replaced` in number, stand in
    the place of the first steps of the thought; None: there is no thought. `ends`: whether the model writes the
    thought's end itself."""
    start, end = (tokenizer.controls[name] for name in THINKING)
    parts = [(asked, TokenKind.USER)]
    if replaced is not None:
        left = [i for step in steps[replaced:] for i in step]
        unwritten = TokenKind.CONTROL if left else TokenKind.LATENT
        parts += [([start], TokenKind.CONTROL), ([tokenizer.controls[LATENT]] * replaced, TokenKind.LATENT)]
        parts += [(left, TokenKind.THOUGHT), ([end], TokenKind.THOUGHT if ends else unwritten)]
    parts.append((answer, TokenKind.FINAL_ANSWER))
    kinds = [kind for part, kind in parts for _ in part]
    return np.array([i for part, _ in parts for i in part], np.int32), np.array(kinds, np.uint8)


@SOURCES.register
class ProsQASource(MadeSource):
    """`kind: prosqa`: questions by the published rule."""

    kind: Literal["prosqa"] = "prosqa"
    """Which of two nodes of a graph is reached."""
    format: Annotated[Literal["prosqa"], Field(exclude=True)] = "prosqa"
    """The same as `kind: prosqa`."""
    documents: Positive = 1000
    """Number of questions."""
    thoughts: bool = True
    """Whether answers have a chain of thought."""
    latents: LatentSteps = LatentSteps()
    """How many steps of the chain are latents."""
    few: bool = False
    """Whether graphs have few nodes."""
    corpus_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the questions."""

    def identity(self) -> list:
        settings = {"documents", "thoughts", "latents", "few", "corpus_seed"}
        return ["prosqa", 2, self.model_dump(mode="json", include=settings)]

    def blocks(self, name: str, tokenizer: Tokenizer) -> Iterator[MadeBlock]:
        random = np.random.RandomState(derive(self.corpus_seed, "prosqa") % 2**32)
        for first in range(0, self.documents, 1000):
            numbers = np.arange(first, min(first + 1000, self.documents))
            replaced = self.latents.of_documents(numbers, STEPS, derive(self.corpus_seed, "latents"))
            questions = [made(random, FEW if self.few else NODES) for _ in replaced]
            found = [written(question, int(k), self.thoughts, tokenizer, random)
                     for question, k in zip(questions, replaced, strict=True)]  # fmt: skip
            ids, kinds = (np.concatenate(part) for part in zip(*found, strict=True))
            yield MadeBlock(ids, kinds, np.array([len(part) for part, _ in found], np.int64))


# ---- runs ------------------------------------------------------------------------------------------------------------

ROWS, LENGTH, QUESTIONS_A_ROW, FEW_A_ROW = 12, 256, 2.4, 8
EASY, START, STAGE = 400, 600, 150
"""Updates on graphs of few nodes, then on whole ones; of each stage."""
MODEL = chain.MODEL | {
    "num_hidden_layers": 4,
    "rope_theta": 300.0,
    "intermediate_size_mlp": 128,
    "num_local_experts": 32,
    "intermediate_size": 216,
    "interleave_moe_layer_step": 2,
}
"""Maverick's pattern: of four layers two have rotary embedding, and the other two each 32 experts, of which a token
takes one, beside the shared one. 2.9 million parameters, 0.32 million of them for a token."""
STAGES = tuple(chain.Part(STAGE, replaced) for replaced in (1, 2, STEPS))
Variants = dict[str, tuple[chain.Part, ...]]


def variants_of(start: tuple[chain.Part, ...], stages: tuple[chain.Part, ...]) -> Variants:
    """What each variant is trained on; `text`, `latents` and `pauses` go on from `start`, all with as many updates."""
    more = sum(part.updates for part in stages)
    plain = [dataclasses.replace(part, thoughts=False) for part in start]
    last = dataclasses.replace(plain[-1], updates=plain[-1].updates + more)
    return {"start": start, "text": (chain.Part(more),), "latents": stages, "pauses": stages,
            "none": (*plain[:-1], last)}  # fmt: skip


VARIANTS = variants_of((chain.Part(EASY), chain.Part(START)), STAGES)


def staged_config(
    variant: str, variants: Variants, source: Callable[[chain.Part, int], dict[str, Any]], changes: dict[str, Any],
    seed: int, work: pathlib.Path,
) -> dict[str, Any]:  # fmt: skip
    """The whole config of a run. `source`: that of a part, by its number; `changes`: other keys of the config."""
    model, stages = dict(MODEL), []
    if variant not in ("start", "none"):
        model["init_from"] = str(chain.folder("start", seed, work))
    for number, part in enumerate(variants[variant], start=10 * list(variants).index(variant)):
        own = source(part, number) | {"thoughts": part.thoughts, "held_out_fraction": 0.0}
        own["latents"] = {"replaced": part.replaced, "mix": chain.MIX if part.replaced else 0.0}
        data = {"sources": {f"part_{number}": own}, "kind_weights": {"control": 0}}
        stage: dict[str, Any] = {"name": f"part_{number}", "steps": part.updates, "data": data}
        if variant == "latents":
            stage["model"] = {"latent": {"token_id": chain.LATENT, "passes": part.replaced}}
        stages.append(stage)
    config = chain.run_config("start", seed, work)
    config["run"]["dir"] = str(chain.folder(variant, seed, work))
    most = max(part.replaced for part in variants[variant])
    latent = {"token_id": chain.LATENT, "passes": most} if variant == "latents" else None
    data = config["data"] | changes["data"]
    return config | changes | {"model": model | {"latent": latent}, "stages": stages, "data": data}


def run_config(variant: str, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """The whole config of a run."""

    def source(part: chain.Part, number: int) -> dict[str, Any]:
        few = variant in ("start", "none") and number % 10 == 0
        documents = int(part.updates * ROWS * (FEW_A_ROW if few else QUESTIONS_A_ROW))
        return {"kind": "prosqa", "documents": documents, "few": few, "corpus_seed": 100 * seed + number}

    changes = {"plugins": ["benchmarks.prosqa"], "data": {"batch_size": ROWS, "sequence_length": LENGTH}}
    return staged_config(variant, VARIANTS, source, changes, seed, work)


# ---- right answers ---------------------------------------------------------------------------------------------------


def rights(model: Maverick, questions: Sequence[Question], part: chain.Part, change: chain.Change = chain.kept) -> list:
    """Whether each question is answered rightly, thoughts and answers written greedily; latents and control tokens
    stand where they do in training."""
    tokenizer, random = load_tokenizer(chain.TOKENIZER), np.random.RandomState(7)
    rows = [written(question, part.replaced, part.thoughts, tokenizer, random) for question in questions]
    tokens = np.zeros((len(rows), LENGTH), np.int32)
    places = np.full((len(rows), LONGEST + 1), -1)
    for i, (ids, kinds) in enumerate(rows):
        tokens[i, : len(ids)] = ids
        own = np.flatnonzero(np.isin(kinds, (TokenKind.THOUGHT, TokenKind.FINAL_ANSWER)))
        places[i, : len(own)] = own
        tokens[i, own] = 0
    with jax.set_mesh(single_device_mesh()):
        for column in places.T:
            rows_left = np.flatnonzero(column >= 0)
            chosen = np.asarray(chain.chosen(model, jnp.asarray(tokens), change))
            tokens[rows_left, column[rows_left]] = chosen[rows_left, column[rows_left] - 1]
    last = places.max(axis=1)
    return [bool(tokens[i, last[i]] == ids[-1]) for i, (ids, _) in enumerate(rows)]


def measured(variant: str, seed: int, work: pathlib.Path, test: Sequence[Question]) -> dict[str, Any]:
    part, model = VARIANTS[variant][-1], load_pretrained(chain.folder(variant, seed, work))
    random, found = np.random.RandomState(99), {}
    sets = {"test": test, "made": [made(random) for _ in range(300)]}
    for change in (chain.kept, chain.zeroed) if variant == "latents" else (chain.kept,):
        for name, questions in sets.items():
            figure = figure_of([float(x) for x in rights(model, questions, part, change)])
            key = name if change is chain.kept else f"{name}, zeroed"
            found[key] = [figure.value, figure.low, figure.high]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the runs")
    parser.add_argument("--test", type=pathlib.Path, required=True, help="published questions, JSON lines")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    test, runs = [published(line) for line in args.test.read_text().splitlines()], []
    for variant in args.variants:
        run_dir = chain.folder(variant, args.seed, args.work)
        seconds = chain.trained_run(run_config(variant, args.seed, args.work), run_dir)
        runs.append({"variant": variant, "cpu_seconds": seconds, **measured(variant, args.seed, args.work, test)})
        print(runs[-1], file=sys.stderr, flush=True)
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
