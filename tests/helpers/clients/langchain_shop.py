"""An agent of LangChain (`create_agent`, LangGraph's loop of model and tools) whose tools are carried out elsewhere.

Reads one JSON object per line: first `system` and `tools` (name, description, JSON schema), then `user` for each
message of the user, with `new` for the first of a user. Writes one JSON object per line: `call` and `arguments`, to
which a line `result` is the answer; `answer`, the agent's reply to the user; or `problem`.
"""

import json
import sys

from cases import KEY, MODEL, URL
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

MOST_STEPS = 16
"""Most messages of model and tools for one message of the user."""


def say(**line) -> None:
    print(json.dumps(line), flush=True)


def heard() -> dict:
    return json.loads(sys.stdin.readline() or "{}")


def remote(declared: dict) -> StructuredTool:
    """A tool whose calls go to the other process."""

    def run(**arguments) -> str:
        say(call=declared["name"], arguments=arguments)
        return heard()["result"]

    return StructuredTool(
        name=declared["name"], description=declared["description"], args_schema=declared["parameters"], func=run
    )


def main() -> None:
    begun = heard()
    chat = ChatOpenAI(
        model=MODEL, base_url=f"{URL}/v1", api_key=KEY, max_retries=0, temperature=0, max_completion_tokens=200
    )
    agent = create_agent(chat, tools=[remote(tool) for tool in begun["tools"]], system_prompt=begun["system"])
    messages = []
    while asked := heard():
        messages = [*([] if asked["new"] else messages), HumanMessage(asked["user"])]
        try:
            messages = agent.invoke({"messages": messages}, {"recursion_limit": MOST_STEPS})["messages"]
        except Exception as error:  # what the framework says is the result
            say(problem=f"{type(error).__name__}: {error}")
            continue
        say(answer=messages[-1].text if isinstance(messages[-1].text, str) else messages[-1].text())


if __name__ == "__main__":
    main()
