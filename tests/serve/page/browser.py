"""A headless Chromium, driven over two pipes by its DevTools protocol: no library and no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the sandbox refuses to run as root, which containers do
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class BrowserError(AssertionError):
    """Chromium refused a command, an expression raised, or what was waited for did not come."""


class Browser:
    """One page of one Chromium process; console messages, network requests and errors are kept as they come."""

    def __init__(self, profile: Path):
        assert PROGRAM is not None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._replies: dict[int, dict[str, object]] = {}
        self._number = 0
        self._pending = b""
        commands, self._send = os.pipe()
        self._receive, replies = os.pipe()
        # the shell puts the pipes where Chromium looks for them
        start = f'exec "$0" "$@" 3<&{commands} 4>&{replies}'
        with open(profile.parent / "chromium.log", "wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", start, PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
                pass_fds=(commands, replies),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(commands)
        os.close(replies)
        targets = self._command("Target.getTargets", session=None)["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self._command("Target.attachToTarget", session=None, targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.downloads = profile.parent / "downloads"
        self._command("Browser.setDownloadBehavior", session=None, behavior="allow", downloadPath=str(self.downloads))
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._command(f"{domain}.enable")

    def close(self) -> None:
        """Ends the browser and what it started."""
        try:
            self._command("Browser.close", session=None)
        except (BrowserError, OSError):
            self._process.kill()
        self._process.wait(20)
        os.close(self._send)
        os.close(self._receive)

    def open(self, address: str) -> None:
        """Loads a page and waits for its scripts."""
        self._command("Page.navigate", url=address)
        self.wait(f"location.href.startsWith({json.dumps(address)}) && document.readyState === 'complete'")

    def evaluate(self, script: str) -> object:
        """The value of an expression, promises awaited."""
        answer = self._command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {json.dumps(answer['exceptionDetails'])[:800]}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"!!({condition})"):
            if time.monotonic() > end:
                raise BrowserError(f"not within {seconds} s: {condition}; the page says {self.text('body')!r}")
            self._read(0.05)

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """Presses the mouse in the middle of an element, as a user would."""
        script = (
            "(element => { element.scrollIntoView({block: 'nearest', behavior: 'instant'});"
            "const box = element.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })"
        )
        place = self.evaluate(f"{script}(document.querySelector({json.dumps(selector)}))")
        for kind in ("mousePressed", "mouseReleased"):
            self._command(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", buttons=1, clickCount=1
            )

    def type(self, selector: str, text: str) -> None:
        """Focuses a field, empties it and types."""
        self.evaluate(f"(e => {{ e.focus(); e.select?.(); }})(document.querySelector({json.dumps(selector)}))")
        self._command("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Presses one key; `code` is its Windows number, Enter 13 and Tab 9."""
        letter = {"text": "\r"} if key == "Enter" else {}
        self._command("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **letter)
        self._command("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """The size of the window in CSS pixels."""
        self._command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    def prefer(self, scheme: str) -> None:
        """The system's theme, `light` or `dark`."""
        self._command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def offline(self, offline: bool) -> None:
        """Cuts the page off, or lets it back on the network."""
        self._command(
            "Network.emulateNetworkConditions",
            offline=offline,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def screenshot(self, path: Path) -> None:
        """Writes a PNG of the window."""
        path.write_bytes(base64.b64decode(self._command("Page.captureScreenshot", format="png")["data"]))

    def _command(self, method: str, session: str | None = "", **parameters: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while self._number not in self._replies:
            if time.monotonic() > end:
                raise BrowserError(f"{method}: no answer within 60 s")
            self._read(1)
        reply = self._replies.pop(self._number)
        if "error" in reply:
            raise BrowserError(f"{method}: {reply['error']}")
        return reply["result"]

    def _read(self, seconds: float) -> None:
        """Takes in what has come, waiting for it at most so long."""
        if not select.select([self._receive], [], [], seconds)[0]:
            return
        part = os.read(self._receive, 1 << 20)
        if not part:
            raise BrowserError("Chromium ended")
        *messages, self._pending = (self._pending + part).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._replies[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, event: dict) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["exceptionDetails"])[:800])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(event["args"])[:800])
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
