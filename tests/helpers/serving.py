"""A server over a scripted engine, on a port of this machine, and a client that speaks plain HTTP to it."""

import contextlib
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from launch.serve.app import application
from launch.serve.http import bind, hosts_of, http_server
from launch.serve.served import Served, ServeOptions
from maverick_jax.images import ImageConfig
from maverick_jax.text import load_tokenizer
from tests.helpers.scripted_engine import ScriptedEngine

KEY = "a-key-for-tests-only"
MODEL = "toy"
PATIENCE = 600
"""Seconds after which a test gives up waiting; a busy machine is slow."""
IMAGES = ImageConfig(tile_size=28, patch_size=14, max_tiles=4)


@dataclasses.dataclass
class Answer:
    """A response: its status, headers and body."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Data of server-sent events, without the end mark."""
        lines = [line.removeprefix("data: ") for line in self.content.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


class Client:
    """Sends requests with the key."""

    def __init__(self, port: int, engine: ScriptedEngine, served: Served):
        self.port, self.engine, self.served = port, engine, served
        self.url = f"http://127.0.0.1:{port}"

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, key: str | None = KEY
    ) -> Answer:
        given = {"Authorization": f"Bearer {key}"} if key else {}
        if body is not None:
            given["Content-Type"] = "application/json"
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, content, given | (headers or {}))
            found = connection.getresponse()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            connection.close()

    def get(self, path: str, **more: Any) -> Answer:
        return self.send("GET", path, **more)

    def post(self, path: str, body: Any, **more: Any) -> Answer:
        return self.send("POST", path, body, **more)

    def chat(self, messages: Any = "Hello", **fields: Any) -> Answer:
        messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self.post("/v1/chat/completions", {"model": MODEL, "messages": messages, **fields})

    def complete(self, prompt: Any = "Hello", **fields: Any) -> Answer:
        return self.post("/v1/completions", {"model": MODEL, "prompt": prompt, **fields})

    def respond(self, given: Any = "Hello", **fields: Any) -> Answer:
        return self.post("/v1/responses", {"model": MODEL, "input": given, **fields})

    def writes(self, *replies: str | list) -> None:
        """From here on, the model writes these replies in turn, the last one for ever. A text is written byte by byte
        and ended; of a list, strings that are control tokens are these."""
        left = [self.ids_of(reply) for reply in replies]
        self.engine.script = lambda request: left.pop(0) if len(left) > 1 else left[0]

    def ids_of(self, reply: str | list) -> list[int]:
        tokenizer = self.engine.tokenizer
        parts = [reply, "<|eot|>"] if isinstance(reply, str) else reply
        ids = []
        for part in parts:
            known = [part] if isinstance(part, int) else tokenizer.controls.get(part) if isinstance(part, str) else None
            ids += known if isinstance(known, list) else tokenizer.encode(part) if known is None else [known]
        return ids


@contextlib.contextmanager
def serving(engine: Any = None, images: ImageConfig | None = IMAGES, **options: Any) -> Iterator[Client]:
    """A server on a free port of this machine until the block ends, over a scripted engine or another one with a
    tokenizer."""
    engine = engine or ScriptedEngine(load_tokenizer("bytes"))
    served = Served(engine, engine.tokenizer, images, ServeOptions(**({"name": MODEL} | options)))
    listening = bind("127.0.0.1", 0)
    server = http_server(application(served, KEY, hosts_of(listening)), served.limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Client(listening.getsockname()[1], engine, served)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()
        served.close()


def wait_until(true, seconds: float = PATIENCE) -> None:
    """Waits until a function returns something true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
