"""Runs the cases of one client against a server and prints one JSON object for each. It runs in the client's own
environment, so that it imports nothing of this project."""

import asyncio
import inspect
import json
import os
import sys
import traceback

URL = os.environ["SERVE_URL"]
KEY = os.environ["OPENAI_API_KEY"]
MODEL = os.environ.get("SERVE_MODEL", "toy")
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mM8ISfHgA0wMeAAg1MCANDK"
    "ARQfGKMRAAAAAElFTkSuQmCC"
)
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time"}},
]
ONE_CALL = 'WRITE [get_weather(city="Paris", days=2)]'
TWO_CALLS = 'WRITE [get_weather(city="Paris"), now()]'
CASES = []


def case(function):
    CASES.append(function)
    return function


def main() -> None:
    for function in CASES:
        try:
            found = function()
            if inspect.iscoroutine(found):
                asyncio.run(found)
            problem = None
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps({"case": function.__name__, "problem": problem}), flush=True)
    sys.stdout.flush()


def equal(found, wanted) -> None:
    assert found == wanted, f"{found!r}, expected {wanted!r}"
