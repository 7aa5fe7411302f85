"""The page in a real browser, on a real server of a small model."""

from __future__ import annotations

import base64
import json
import shlex
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.serve.page.browser import PROGRAM
from tests.serve.page.using_the_page import READY, asked, downloaded, draw, finished

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium is installed")

LONG = {"n": 20, "steps": 900}
"""A drawing that is not done before the test looks at it."""
WATCH = (
    "window.seen = []; new MutationObserver(() => { const text = document.querySelector('.where')?.innerText;"
    "if (text && text !== window.seen.at(-1)) window.seen.push(text); })"
    ".observe(document.querySelector('#drawings'), {childList: true, subtree: true, characterData: true})"
)
CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")


def test_a_picture_appears_step_by_step_and_is_the_servers_bytes(page, address):
    page.evaluate(WATCH)
    draw(page, "a red heart", seed=7, steps=300)
    finished(page)
    steps = [int(text.split()[1]) for text in page.evaluate("window.seen") if text.startswith("Step ")]
    assert len(set(steps)) >= 5
    assert steps == sorted(steps)
    assert page.evaluate("document.querySelectorAll('.strip img').length") == 10
    assert "seed 7" in page.text(".seed").lower()
    same = asked(address, "/v1/images/generations", {"prompt": "a red heart", "seed": 7, "steps": 300})
    assert downloaded(page) == base64.b64decode(same["data"][0]["b64_json"])


def test_the_same_question_says_that_its_bytes_are_the_same(page):
    for _ in range(2):
        draw(page, "twice", seed=3, steps=2)
        finished(page)
    assert "same bytes as before" in page.text("article figcaption")


def test_a_seed_that_the_server_chose_draws_the_same_again(page):
    draw(page, "a ball", steps=2)
    finished(page)
    first = downloaded(page)
    page.click("article .actions button")
    assert page.evaluate("document.querySelector('#seed').value") == page.text(".seed").split()[1]
    page.click("#draw")
    page.wait("document.querySelectorAll('article[data-state=done]').length === 2")
    assert downloaded(page) == first


def test_a_picture_of_several_is_the_servers_too(page, address):
    draw(page, "three", n=3, seed=5, steps=2)
    finished(page)
    assert page.evaluate("document.querySelectorAll('article figure img.pixels').length") == 3
    same = asked(address, "/v1/images/generations", {"prompt": "three", "n": 3, "seed": 5, "steps": 2})["data"]
    assert [entry["index"] for entry in same] == [0, 1, 2]
    shown = page.evaluate("[...document.querySelectorAll('.seed')].map(e => e.innerText)")
    assert shown == [f"Seed 5, picture {i}" for i in (1, 2, 3)]
    for i, entry in enumerate(same, 1):
        assert downloaded(page, f"figure:nth-child({i}) a[download]") == base64.b64decode(entry["b64_json"])


def test_cancel_ends_the_request_at_the_server(page, address):
    draw(page, "never done", **LONG)
    page.wait("document.querySelector('article').dataset.state === 'drawing'")
    page.wait("document.querySelector('#queue li.own')")
    page.click("#cancel")
    page.wait("document.querySelector('article').dataset.state === 'cancelled'", 2)
    end = time.monotonic() + 5
    while asked(address, "/v1/requests")["data"]:
        assert time.monotonic() < end
    page.wait("document.querySelectorAll('#queue li').length === 0", 5)


def test_more_drawings_than_a_browser_has_connections_can_all_be_cancelled(page, address):
    draw(page, "many", **LONG)
    for _ in range(7):
        page.press("Enter", 13)
    page.wait("document.querySelectorAll('#queue li.own').length === 4", 90)
    page.click("#cancel")
    page.wait("document.querySelectorAll('article[data-state=cancelled]').length === 8", 5)
    page.wait("document.querySelectorAll('#queue li').length === 0", 5)
    assert asked(address, "/v1/requests")["data"] == []


def test_requests_of_others_are_seen_but_not_cancelled_here(page, address):
    body = json.dumps({"prompt": "theirs", **LONG, "stream": True, "step_events": True}).encode()
    question = urllib.request.Request(f"{address}/v1/images/generations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(question, timeout=60) as answer:
        answer.readline()
        page.wait("document.querySelector('#queue li')", 5)
        assert page.evaluate("document.querySelectorAll('#queue button').length") == 0
    page.wait("!document.querySelector('#queue li')", 10)


def test_a_refusal_stands_beside_the_form_in_the_servers_words(page, address):
    draw(page, "too many", steps=100000)
    page.wait("!document.querySelector('#error').hidden")
    try:
        asked(address, "/v1/images/generations", {"prompt": "too many", "steps": 100000})
    except urllib.error.HTTPError as error:
        refused = json.load(error)["error"]
    assert page.text("#error") == refused["message"]
    assert page.evaluate("document.querySelectorAll('article').length") == 0
    assert all("400" in error for error in page.errors)  # the browser's own line
    page.errors.clear()


def test_markup_in_a_prompt_stays_text(page):
    prompt = "<img src=x onerror=\"document.title='broken'\"><b>bold</b>"
    draw(page, prompt, steps=1)
    finished(page)
    assert page.text("article h3") == prompt
    assert page.evaluate("document.title") != "broken"


def test_what_the_pipeline_warns_of_stands_under_the_picture(page):
    draw(page, "a " * 90, steps=1)
    finished(page)
    assert "truncated" in page.text("figcaption")


def test_a_model_without_a_prompt_draws_from_its_seed_alone(browser, bare_address):
    browser.open(f"{bare_address}/")
    browser.wait(READY)
    assert "no prompt" in browser.text("#takes-nothing")
    hidden = "['prompt', 'labels', 'guidance', 'negative_prompt']"
    assert not browser.evaluate(f"{hidden}.some(id => document.getElementById(id).checkVisibility())")
    browser.type("#seed", "9")
    browser.type("#steps", "2")
    browser.press("Enter", 13)
    finished(browser)
    same = asked(bare_address, "/v1/images/generations", {"prompt": "", "seed": 9, "steps": 2})
    assert downloaded(browser) == base64.b64decode(same["data"][0]["b64_json"])


def test_the_curl_line_draws_the_same_picture(page, address):
    page.type("#seed", "11")
    page.type("#steps", "2")
    page.type("#prompt", 'it\'s a "dog" \\ café')
    words = shlex.split(page.evaluate("document.querySelector('#curl').textContent"))
    assert words[:3] == ["curl", "-s", f"{address}/v1/images/generations"]
    answer = asked(address, "/v1/images/generations", json.loads(words[words.index("-d") + 1]))
    page.press("Enter", 13)
    finished(page)
    assert downloaded(page) == base64.b64decode(answer["data"][0]["b64_json"])


def test_the_model_card_says_what_the_server_says(page, address):
    card = asked(address, "/v1/models")["data"][0]
    assert page.text("#model") == card["id"]
    shown = page.text("#card")
    assert card["dq"]["record_sha256"][:12] in shown
    share = card["dq"]["integer_share"]
    assert ("not said" if share is None else f"{100 * share:.1f} % of all multiply-adds") in shown
    assert card["dq"]["same_bytes"]["how"] in shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_and_follows_the_systems_theme(page, scheme):
    page.prefer(scheme)
    draw(page, "a picture", steps=2, n=2)
    finished(page)
    page.evaluate("document.querySelector('details').open = true")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part < 60)")
    assert dark == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []


def test_a_chosen_theme_is_remembered(page, address):
    page.click("#theme")
    page.click("#theme")
    assert page.text("#theme") == "Theme: dark"
    page.open(f"{address}/?again")
    page.wait(READY)
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    page.size(width, 740, phone=width == 360)
    draw(page, "w" * 300, steps=2, n=3)
    finished(page)
    page.evaluate("document.querySelector('details').open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_on_a_phone_what_is_drawn_comes_into_view(page):
    page.size(360, 740, phone=True)
    draw(page, "below the form", steps=2)
    finished(page)
    top = "document.querySelector('article').getBoundingClientRect().top"
    page.wait(f"{top} >= 0 && {top} < innerHeight / 2", 5)


def test_the_keyboard_reaches_everything_in_order(page):
    page.evaluate("document.querySelector('.skip').focus()")
    reached = []
    while "draw" not in reached and len(reached) < 20:
        page.press("Tab", 9)
        reached.append(page.evaluate("document.activeElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached
    wanted = ["theme", "prompt", "n", "steps", "seed", "output_format", "draw"]
    assert [name for name in reached if name in wanted] == wanted


def test_every_field_and_button_has_a_name(page):
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')].filter(e => e.checkVisibility() &&"
        "!(e.labels?.length || e.ariaLabel || e.innerText.trim())).map(e => e.id)"
    )
    assert nameless == []


def test_a_hidden_page_does_not_ask(page):
    page.evaluate(
        "Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    time.sleep(0.3)
    before = len(page.requests)
    time.sleep(1.5)
    assert page.evaluate("document.visibilityState") == "hidden"
    assert len(page.requests) == before
    page.evaluate("delete document.visibilityState; document.dispatchEvent(new Event('visibilitychange'))")
    time.sleep(0.3)
    page.evaluate("1")
    assert len(page.requests) > before


def test_a_server_that_is_gone_is_said_and_found_again(page):
    page.offline(True)
    page.wait("!document.querySelector('#gone').hidden", 5)
    assert "does not answer" in page.text("#gone")
    assert "Not known" in page.text("#queue-empty")
    page.offline(False)
    page.wait("document.querySelector('#gone').hidden", 5)
    assert page.text("#status") == "Ready"
    assert all("ERR_INTERNET_DISCONNECTED" in error for error in page.errors)
    page.errors.clear()
