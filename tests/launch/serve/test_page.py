"""The chat page: one file that asks for nothing else, and a conversation on it in a browser."""

import base64
import contextlib
import http.client
import json
import pathlib
import re
import shutil
import socket
import subprocess

import pytest
from PIL import Image

from tests.helpers.serving import KEY, PATIENCE, serving, wait_until

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which WebDriver names an element."""


def test_the_page_is_one_file_and_forbids_all_else():
    with serving() as client:
        page = client.get("/")
        text = page.content.decode()
        assert page.status == 200 and page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(r"""\b(src|href)=|@import|url\(["']?http|innerHTML|insertAdjacentHTML|eval\(""", text)


class Browser:
    """A headless Chromium, driven over WebDriver."""

    def __init__(self, port: int):
        self.port = port
        chrome = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=900,900"]}
        chrome["binary"] = shutil.which("chromium") or shutil.which("google-chrome")
        capabilities = {"alwaysMatch": {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}}
        self.session = self.ask("POST", "/session", {"capabilities": capabilities})["sessionId"]

    def ask(self, method: str, path: str, body: dict | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            found = json.loads(connection.getresponse().read())["value"]
        assert not (isinstance(found, dict) and "error" in found), found
        return found

    def do(self, method: str, path: str, body: dict | None = None):
        return self.ask(method, f"/session/{self.session}{path}", body)

    def open(self, url: str) -> None:
        self.do("POST", "/url", {"url": url})

    def element(self, selector: str) -> str:
        return self.do("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        self.do("POST", f"/element/{self.element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self.do("POST", f"/element/{self.element(selector)}/value", {"text": text})

    def texts(self, selector: str) -> list[str]:
        script = f"return [...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
        return self.do("POST", "/execute/sync", {"script": script, "args": []})

    def screenshot(self, path: pathlib.Path) -> None:
        path.write_bytes(base64.b64decode(self.do("GET", "/screenshot")))


@pytest.fixture
def browser():
    if not shutil.which("chromedriver"):
        pytest.skip("chromedriver is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    try:
        wait_until(answers)
        made = Browser(port)
        yield made
        made.do("DELETE", "")
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.slow
def test_a_conversation_in_a_browser(browser, tmp_path):
    hostile = "<img src=x onerror=\"document.title='owned'\"> is text, **and** so is this: Grüße €"
    with serving() as client:
        client.writes(hostile, "A picture of one color.", "x" * 50_000)
        browser.open(f"http://127.0.0.1:{client.port}/")
        assert "Message" not in "".join(browser.texts("body")), "without the key there is no page"
        browser.open(f"http://anyone:{KEY}@127.0.0.1:{client.port}/")
        wait_until(lambda: browser.texts("#model") == ["toy"])
        browser.type("#text", "Hello there\ue007")
        wait_until(lambda: browser.texts(".assistant") == [hostile] and browser.texts("#send") == ["Send"])
        assert browser.texts(".user") == ["Hello there"]
        Image.new("RGB", (64, 48), (235, 140, 47)).save(tmp_path / "blue.png")
        browser.click("summary")
        browser.type("#picture", str(tmp_path / "blue.png"))
        browser.type("#system", "Be brief.")
        browser.type("#text", "What is this?")
        browser.click("#send")
        wait_until(lambda: browser.texts(".assistant")[1:] == ["A picture of one color."])
        request = client.engine.requests[-1]
        text = bytes(i for i in request.prompt if i < 256).decode(errors="replace")
        assert "Be brief." in text and "Hello there" in text and "Grüße" in text and request.tiles is not None
        wait_until(lambda: browser.texts("#send") == ["Send"])
        browser.screenshot(tmp_path / "page.png")
        client.engine.pause()
        browser.type("#text", "Go on\ue007")
        wait_until(lambda: client.engine.status().active + client.engine.status().queued == 1)
        browser.click("#send")
        wait_until(lambda: browser.texts(".note:not(#usage)") == ["stopped"])
        client.engine.go()
        wait_until(lambda: client.engine.status().active + client.engine.status().queued == 0)
        assert browser.texts("title") == ["toy"]
        browser.click("#new")
        assert browser.texts(".message") == []
        problems = [e["message"] for e in browser.do("POST", "/se/log", {"type": "browser"}) if e["level"] == "SEVERE"]
        assert [p for p in problems if "401" not in p and "favicon" not in p] == []
    assert (tmp_path / "page.png").stat().st_size > 1000
