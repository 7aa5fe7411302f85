"""What a user does with the page, and the same question asked by HTTP."""

from __future__ import annotations

import json
import time
import urllib.request

from tests.serve.page.browser import Browser

READY = "!document.querySelector('#all').disabled"
"""True once the page knows the model."""


def asked(address: str, path: str, body: object = None, token: str = "") -> dict:
    """What the server answers to the same question by HTTP."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    question = urllib.request.Request(f"{address}{path}", data, headers)
    with urllib.request.urlopen(question, timeout=60) as answer:
        return json.load(answer)


def draw(page: Browser, prompt: str, **settings: object) -> None:
    for name, value in settings.items():
        page.type(f"#{name}", str(value))
    page.type("#prompt", prompt)
    page.press("Enter", 13)


def finished(page: Browser) -> None:
    page.wait("document.querySelector('article')?.dataset.state === 'done'")


def downloaded(page: Browser, link: str = "article a[download]") -> bytes:
    """The bytes that a picture's link gives, by default the newest one's."""
    for old in page.downloads.glob("*"):
        old.unlink()
    page.click(link)
    for _ in range(200):
        files = [file for file in page.downloads.glob("*") if file.suffix != ".crdownload"]
        if files and files[0].stat().st_size:
            return files[0].read_bytes()
        time.sleep(0.02)
    raise AssertionError("nothing was downloaded")
