"""The page of a server that wants a token and draws what a label says."""

from __future__ import annotations

import base64

import pytest

from tests.serve.page.browser import PROGRAM
from tests.serve.page.conftest import TOKEN
from tests.serve.page.using_the_page import READY, asked, downloaded, finished

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium is installed")


def test_a_token_is_asked_for_and_then_a_label_is_drawn(browser, closed_address):
    browser.open(f"{closed_address}/")
    browser.wait("document.querySelector('#token-dialog').open")
    browser.type("#token", "wrong")
    browser.press("Enter", 13)
    browser.wait("!document.querySelector('#token-error').hidden")
    browser.type("#token", TOKEN)
    browser.press("Enter", 13)
    browser.wait(READY)
    assert all("401" in error for error in browser.errors)  # the browser's own lines
    browser.errors.clear()

    labels = asked(closed_address, "/v1/models", token=TOKEN)["data"][0]["dq"]["labels"]
    shown = browser.evaluate("[...document.querySelectorAll('#labels input')].map(e => Number(e.value))")
    assert shown == list(range(labels["low"], labels["high"] + 1))
    browser.evaluate("document.querySelector('#labels input').focus()")
    browser.press("ArrowRight", 39)
    browser.press("ArrowRight", 39)
    browser.type("#seed", "4")
    browser.type("#steps", "3")
    curl = browser.evaluate("document.querySelector('#curl').textContent")
    assert "Bearer $TOKEN" in curl
    assert TOKEN not in curl
    browser.press("Enter", 13)
    finished(browser)
    assert browser.text("article h3") == f"Label {labels['low'] + 2}"
    question = {"prompt": str(labels["low"] + 2), "seed": 4, "steps": 3}
    same = asked(closed_address, "/v1/images/generations", question, token=TOKEN)
    assert downloaded(browser) == base64.b64decode(same["data"][0]["b64_json"])

    browser.open(f"{closed_address}/?again")
    browser.wait(READY)
    assert not browser.evaluate("document.querySelector('#token-dialog').open")
    browser.evaluate("sessionStorage.clear()")
    assert browser.errors == []
