"""A headless Chromium, driven over the WebDriver protocol with the standard library.

Installs Debian's packages if they are missing.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

PACKAGES = ("chromium", "chromium-driver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
KEYS = {"Enter": "\ue007", "Tab": "\ue004", "Escape": "\ue00c"}
SETTLE = """
const element = arguments[0], frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
return (async () => {
  for (let before, i = 0; i < 100; i++) {
    element.scrollIntoView({block: "center"});
    await frame();
    const box = JSON.stringify(element.getBoundingClientRect());
    if (box === before) return;
    before = box;
  }
})();
"""
"""Scrolls an element into view until it stays in place: sections get their height only when they
are about to be seen."""
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for "reference to an element"


def install() -> None:
    """Installs the missing packages, for which it needs root; one process of several does it."""
    with FileLock(Path(tempfile.gettempdir()) / "rankrl-tests-packages.lock"):
        if shutil.which("chromedriver"):
            return
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        words = ["apt-get", "install", "-qqy", "--no-install-recommends", *PACKAGES]
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        subprocess.run(words, check=True, env={"DEBIAN_FRONTEND": "noninteractive", "PATH": path})


class Browser:
    """One browser window. Selectors are CSS."""

    def __init__(self, driver: str, profile: Path):
        self.url = driver
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.url = f"{driver}/session/{session['sessionId']}"

    def ask(self, method: str, path: str, content: Any = None) -> Any:
        body = None if method == "GET" else json.dumps(content or {}).encode()
        request = Request(self.url + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error

    def open(self, page: Path) -> None:
        self.ask("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *values: Any) -> Any:
        """The value that the body of a function of `arguments` returns. Awaits a promise."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(values)})

    def _element(self, selector: str) -> str:
        return self.ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        element = self._element(selector)
        self.run(SETTLE, {ELEMENT: element})
        self.ask("POST", f"/element/{element}/click")

    def type(self, selector: str, text: str) -> None:
        self.ask("POST", f"/element/{self._element(selector)}/value", {"text": KEYS.get(text, text)})

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def wait_for(self, selector: str) -> None:
        """Waits for a match. Raises TimeoutError if nothing matches within 20 s."""
        for _ in range(200):
            if self.texts(selector):
                return
            time.sleep(0.1)
        raise TimeoutError(selector)

    def devtools(self, command: str, **values: Any) -> Any:
        """The answer to a command of the Chrome DevTools protocol."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": values})

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )

    def dark(self, on: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def scripts(self, on: bool) -> None:
        self.devtools("Emulation.setScriptExecutionDisabled", value=not on)

    def console(self) -> list[str]:
        """Messages that were logged since the last call."""
        return [entry["message"] for entry in self.ask("POST", "/se/log", {"type": "browser"})]

    def printed(self) -> bytes:
        """The page as the bytes of a PDF."""
        return base64.b64decode(self.devtools("Page.printToPDF", printBackground=True)["data"])

    def screenshot(self, to: Path, whole: bool = False) -> None:
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        to.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """A browser with a new profile below `directory`. It is closed at the end of the block."""
    install()
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = next(line for line in driver.stdout or () if "started successfully on port" in line)
        port = line.rstrip(".\n").rsplit(" ", 1)[1]
        window = Browser(f"http://127.0.0.1:{port}", directory / "profile")
        try:
            yield window
        finally:
            window.ask("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
