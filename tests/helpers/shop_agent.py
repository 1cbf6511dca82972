"""Customers of the toy shop, served by an agent of LangChain whose model is behind `maverick serve`.

    python -m tests.helpers.shop_agent http://127.0.0.1:8000 MODEL --python .cache/clients/langchain/bin/python

plays episodes and prints each, and then how many customers got what they wanted. The key of the server is
read from OPENAI_API_KEY.
"""

import argparse
import json
import os
import pathlib
import subprocess
from typing import NamedTuple

from data.environments.toy_shop import ToyShop, ToyShopConfig
from data.toy_shop import POLICY, TOOLS
from maverick_jax.text.chat import Message, Role, ToolCall

CLIENT = pathlib.Path(__file__).parent / "clients" / "langchain_shop.py"
MOST_ANSWERS = 4
"""Most replies of the agent to one customer."""


class Episode(NamedTuple):
    """A conversation of the agent with one customer."""

    task: str
    lines: list[tuple[str, str]]
    """Who and what: user, call, result, answer, problem."""
    success: bool

    def shown(self) -> str:
        return "\n".join(f"{who:>9}  {text}" for who, text in self.lines)


class ShopAgent:
    """The agent, in a process of its own."""

    def __init__(self, python: pathlib.Path, url: str, key: str, model: str):
        environment = {**os.environ, "SERVE_URL": url, "OPENAI_API_KEY": key, "SERVE_MODEL": model, "PYTHONPATH": ""}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._process = subprocess.Popen([python, CLIENT], env=environment, **pipes)
        declared = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in TOOLS]
        self.tell(system=POLICY, tools=declared)

    def __enter__(self) -> "ShopAgent":
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def tell(self, **line) -> None:
        print(json.dumps(line), file=self._process.stdin, flush=True)

    def says(self) -> dict:
        return json.loads(self._process.stdout.readline() or '{"problem": "the agent has ended"}')

    def serve(self, seed: int, config: ToyShopConfig) -> Episode:
        """One customer."""
        shop: ToyShop = config.make()
        opening = shop.reset(seed)
        asked = opening.steps[-1].message.text
        lines, success, answers = [("user", asked)], False, 0
        self.tell(user=asked, new=True)
        while True:
            said = self.says()
            if "call" in said:
                call = ToolCall(said["call"], said["arguments"])
                shop.calls += 1
                result, _ = shop.shop.call(call)
                lines += [("call", _shown(call)), ("result", result)]
                self.tell(result=result)
                continue
            lines += [(who, text) for who, text in said.items()]
            answers += 1
            if "problem" in said or not said["answer"].strip() or answers == MOST_ANSWERS:
                break
            feedback = shop.step(Message(Role.ASSISTANT, said["answer"]))
            if feedback.outcome is not None:
                success = bool(feedback.outcome.success)
                break
            lines.append(("user", feedback.steps[0].message.text))
            self.tell(user=lines[-1][1], new=False)
        return Episode(opening.task, lines, success)


def _shown(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--python", type=pathlib.Path, required=True, help="the interpreter that has LangChain")
    parser.add_argument("--episodes", type=int, default=8)
    args = parser.parse_args()
    episodes = []
    with ShopAgent(args.python, args.url, os.environ["OPENAI_API_KEY"], args.model) as agent:
        for seed in range(args.episodes):
            episode = agent.serve(seed, ToyShopConfig())
            episodes.append(episode)
            verdict = "served" if episode.success else "not served"
            print(f"{seed}: {episode.task}, {verdict}\n{episode.shown()}\n", flush=True)
    print(f"{sum(e.success for e in episodes)} of {len(episodes)} customers got what they wanted")


if __name__ == "__main__":
    main()
