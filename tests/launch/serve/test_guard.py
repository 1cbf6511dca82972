"""What a request must show: the host, no foreign origin, the key, a JSON body; and what hostile requests get."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import socket
import struct
import zlib

import pytest
from PIL import Image
from starlette.routing import Route

from launch.serve.app import routes
from launch.serve.guard import OPEN_PATH
from launch.serve.limits import RequestLimits
from tests.helpers.serving import KEY, MODEL, PATIENCE, serving, wait_until


@pytest.fixture(scope="module")
def client():
    with serving(limits=RequestLimits(body=1 << 20, body_seconds=1.0, connections=64)) as made:
        yield made


def test_no_route_but_health_answers_without_the_key(client):
    found = [route for route in routes(client.served).routes if isinstance(route, Route)]
    assert len(found) > 10
    for route in found:
        for method in (route.methods or set()) - {"HEAD"}:
            path = route.path.replace("{id}", "x")
            body = {} if method == "POST" else None
            for key in (None, "wrong", KEY[:-1], f"{KEY}x"):
                answer = client.send(method, path, body, key=key)
                assert answer.status == (200 if path == OPEN_PATH else 401), (method, path, key)


@pytest.mark.parametrize(
    "path", ["/health/", "/health%2f", "//health", "/health/../v1/models", "/%68ealth/x", "/nowhere"]
)
def test_only_the_exact_path_is_open(client, path):
    assert client.get(path, key=None).status in (401, 404) and client.get(path, key=None).status == 401


def test_the_key_is_in_the_header_alone(client):
    assert client.get(f"/v1/models?api_key={KEY}&key={KEY}", key=None).status == 401
    assert client.post("/v1/chat/completions", {"api_key": KEY, "key": KEY}, key=None).status == 401
    assert client.get("/v1/models", key=None, headers={"Cookie": f"key={KEY}", "X-API-Key": KEY}).status == 401
    basic = base64.b64encode(f"anyone:{KEY}".encode()).decode()
    assert client.get("/v1/models", key=None, headers={"Authorization": f"Basic {basic}"}).status == 200


def test_a_missing_key_is_answered_as_clients_expect(client):
    answer = client.get("/v1/models", key=None)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.error["code"] == "invalid_api_key" and answer.error["type"] == "authentication_error"
    page = client.get("/", key=None, headers={"Accept": "text/html"})
    assert page.status == 401 and page.headers["www-authenticate"].startswith("Basic ")


def picture(url: str) -> dict:
    """A request that shows a picture."""
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]}


def data_picture(content: bytes) -> dict:
    return picture("data:image/png;base64," + base64.b64encode(content).decode())


def hostile(client) -> dict[str, tuple[int, tuple]]:
    """Name -> the expected status, and the arguments of `send`."""
    port, chat = client.port, "/v1/chat/completions"
    json_type = {"Content-Type": "application/json"}
    plain = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    return {
        "foreign host": (403, ("GET", "/v1/models", None, {"Host": "evil.example"})),
        "host of another port": (403, ("GET", "/v1/models", None, {"Host": "127.0.0.1:1"})),
        "rebound name with our port": (403, ("GET", "/health", None, {"Host": f"evil.example:{port}"})),
        "empty host": (403, ("GET", "/v1/models", None, {"Host": ""})),
        "foreign origin": (403, ("POST", chat, plain, {"Origin": "https://evil.example"})),
        "null origin": (403, ("POST", chat, plain, {"Origin": "null"})),
        "origin of another port": (403, ("POST", chat, plain, {"Origin": "http://127.0.0.1:1"})),
        "preflight": (403, ("OPTIONS", chat, None, {"Origin": "https://evil.example"})),
        "form post": (415, ("POST", chat, b"a=b", {"Content-Type": "application/x-www-form-urlencoded"})),
        "text post": (415, ("POST", chat, json.dumps(plain).encode(), {"Content-Type": "text/plain"})),
        "multipart post": (415, ("POST", chat, b"--x--", {"Content-Type": "multipart/form-data; boundary=x"})),
        "compressed body": (415, ("POST", chat, b"\x1f\x8b", {"Content-Encoding": "gzip"})),
        "announced body of a gibibyte": (413, ("POST", chat, None, {"Content-Length": str(1 << 30), **json_type})),
        "body beyond the limit": (413, ("POST", chat, b" " * ((1 << 20) + 1))),
        "deep lists": (400, ("POST", chat, b"[" * 100_000)),
        "deep objects": (400, ("POST", chat, b'{"a":' * 70 + b"1" + b"}" * 70)),
        "many lists": (400, ("POST", chat, b'{"a":[' + b"[]," * 210_000 + b"[]]}")),
        "not JSON": (400, ("POST", chat, b"{'model': 1}")),
        "NaN": (400, ("POST", chat, b'{"model": "toy", "temperature": NaN}')),
        "a key twice": (400, ("POST", chat, b'{"model": "toy", "model": "toy"}')),
        "not UTF-8": (400, ("POST", chat, b'{"model": "\xff"}')),
        "a huge number": (400, ("POST", chat, b'{"model": ' + b"9" * 5000 + b"}")),
        "picture of a network": (400, ("POST", chat, picture("http://127.0.0.1:1/x.png"))),
        "picture of a cloud's metadata": (400, ("POST", chat, picture("http://169.254.169.254/latest/meta-data"))),
        "picture of a file": (400, ("POST", chat, picture("file:///etc/passwd"))),
        "picture as SVG": (400, ("POST", chat, picture("data:image/svg+xml;base64,PHN2Zy8+"))),
        "picture that is none": (400, ("POST", chat, data_picture(b"\x89PNG\r\n\x1a\n" + b"x" * 100))),
        "picture as a bomb": (400, ("POST", chat, data_picture(bomb(60_000, 60_000)))),
        "loose base64": (400, ("POST", chat, picture("data:image/png;base64,iVBOR w0KGgo="))),
        "template in the request": (400, ("POST", chat, {**plain, "chat_template": "{{ 7*7 }}"})),
        "unknown field": (400, ("POST", chat, {**plain, "temprature": 1})),
        "unknown model": (404, ("POST", chat, {**plain, "model": "../../etc/passwd"})),
        "path upward": (404, ("GET", "/../../etc/passwd")),
        "too many answers": (400, ("POST", chat, {**plain, "n": 1000})),
        "longer than the context": (400, ("POST", chat, {**plain, "max_tokens": 10**9})),
        "ids out of range": (400, ("POST", "/v1/completions", {"model": MODEL, "prompt": [10**9]})),
        "half characters": (400, ("POST", chat, b'{"model":"toy","messages":[{"role":"user","content":"\\ud800"}]}')),
        "delete of a route": (405, ("DELETE", chat)),
    }  # fmt: skip


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be large."""
    chunk = lambda kind, content: (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_hostile_requests_are_refused_and_the_server_goes_on(client):
    wanted = hostile(client)
    assert len(wanted) > 30
    found = {name: client.send(*given).status for name, (_, given) in wanted.items()}
    assert found == {name: status for name, (status, _) in wanted.items()}
    assert client.chat().status == 200
    assert client.engine.status().active == 0


def test_errors_tell_nothing_of_this_machine(client):
    for name, (_, given) in hostile(client).items():
        answer = client.send(*given)
        text = answer.content.decode()
        assert KEY not in text and "Traceback" not in text and "/launch/" not in text, name
        assert set(answer.error) == {"message", "type", "param", "code"}, name


def test_two_hosts_and_raw_nonsense_are_refused(client):
    def raw(content: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", client.port), timeout=PATIENCE) as connection:
            with contextlib.suppress(OSError):  # the server may refuse before the end, and close
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                return connection.recv(1 << 16)
            return b""

    two = f"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1:{client.port}\r\n\r\n"
    assert raw(two.encode()).split(b" ")[1] in (b"400", b"403")
    assert raw(b"\x16\x03\x01 nonsense\r\n\r\n").split(b" ")[1] == b"400"
    long = raw(b"GET / HTTP/1.1\r\nA: " + b"x" * 200_000 + b"\r\n\r\n")
    assert long[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")


def test_a_body_that_does_not_arrive_is_given_up(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=PATIENCE) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nAuthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{".encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408")


def test_connections_beyond_the_limit_are_refused_and_the_rest_goes_on(client):
    opened = [socket.create_connection(("127.0.0.1", client.port), timeout=PATIENCE) for _ in range(100)]
    try:

        def status() -> int:
            return client.get("/v1/models").status

        wait_until(lambda: status() == 503)
    finally:
        for connection in opened:
            connection.close()
    wait_until(lambda: status() != 503)
    assert status() == 200


def test_a_client_that_leaves_frees_its_slot(client):
    client.writes("x" * 60_000)
    for stream in (True, False):
        client.engine.pause()
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=PATIENCE)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": stream}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        wait_until(lambda: client.engine.status().queued + client.engine.status().active == 1)
        before = client.engine.generated
        connection.close()
        wait_until(lambda: client.served.metrics.open_requests == 0)
        client.engine.go()
        wait_until(lambda: client.engine.status().queued + client.engine.status().active == 0)
        assert client.engine.generated - before <= 2
    client.writes("fine")


def test_more_open_requests_than_the_limit_get_429():
    with serving(limits=RequestLimits(open_requests=2)) as client:
        client.engine.pause()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(client.chat) for _ in range(2)]
            wait_until(lambda: client.served.metrics.open_requests == 2)
            refused = client.chat()
            assert refused.status == 429 and refused.headers["retry-after"] == "1" and refused.error["code"] == "busy"
            assert client.get("/health", key=None).status == 200
            client.engine.go()
            assert [answer.result().status for answer in waiting] == [200, 200]


def test_a_full_queue_gives_429_and_none_of_several_answers_runs():
    with serving() as client:
        client.engine.pause()
        client.engine.most_queued = 2
        answer = client.chat(n=3)
        assert (
            answer.status == 429 and answer.error["code"] == "queue_full" and answer.error["type"] == "rate_limit_error"
        )
        client.engine.go()
        assert client.chat(n=2).status == 200


def test_pictures_beyond_the_limits_are_refused_before_they_are_decoded():
    content = io.BytesIO()
    Image.new("RGB", (100, 100)).save(content, "PNG")
    url = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    with serving(limits=RequestLimits(picture_pixels=10_000, pictures_pixels=25_000, pictures=3)) as client:
        ask = lambda count: client.chat([{"role": "user", "content": [part] * count}])
        assert ask(2).status == 200
        assert ask(3).status == 400 and "5000 pixels" in ask(3).error["message"]
        assert ask(4).status == 400 and "4 pictures" in ask(4).error["message"]


def test_nothing_secret_is_logged(client, caplog, capfd):
    client.chat("a secret question")
    client.get("/v1/models", key="some-wrong-key-value")
    client.send("POST", "/v1/chat/completions", b"{", {"Authorization": f"Bearer {KEY}"})
    logged = caplog.text + "".join(capfd.readouterr())
    assert KEY not in logged and "secret question" not in logged and "some-wrong-key" not in logged
