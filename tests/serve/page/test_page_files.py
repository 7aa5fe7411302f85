"""The page's files as they are served: exactly those known, and with what keeps a browser strict."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dq_deploy.serve.page import HEADERS, page_files, page_router

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
FOLDER = Path(__file__).parents[3] / "dq_deploy" / "serve" / "page"


@pytest.fixture(scope="module")
def client():
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()
    app.include_router(page_router())
    return TestClient(app)


def test_the_page_stands_at_the_root(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == (FOLDER / "index.html").read_bytes()


@pytest.mark.parametrize(
    ("name", "kind"), [("page.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")]
)
def test_each_file_has_its_content_type(client, name, kind):
    answer = client.get(f"/page/{name}")
    assert answer.headers["content-type"].split(";")[0] == kind
    assert answer.content == (FOLDER / name).read_bytes()


def test_every_file_is_strict_and_stays_in_no_cache(client):
    for path in ("/", "/page/page.js", "/page/page.css"):
        headers = client.get(path).headers
        assert {name: headers[name] for name in HEADERS} == HEADERS
        assert headers["cache-control"] == "no-store"
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "path",
    ["__init__.py", "index.html", "..%2f__init__.py", "%2e%2e/__init__.py", "/etc/passwd", "page.css/", "PAGE.CSS", ""],
)
def test_no_other_path_is_served(client, path):
    assert client.get(f"/page/{path}", follow_redirects=False).status_code in (307, 404)


def test_the_head_of_a_file_can_be_asked_for_and_nothing_else(client):
    assert client.head("/").status_code == 200
    assert client.post("/").status_code == 405


def test_the_page_is_not_part_of_the_api(client):
    assert client.get("/openapi.json").json()["paths"] == {}


def test_the_page_asks_nothing_of_another_host_and_has_nothing_inline():
    text = {name: content.decode() for name, content in page_files().items()}
    for name, content in text.items():
        outside = re.findall(r"https?://[^\s\"'`]+", content)
        assert outside in ([], ["http://www.w3.org/2000/svg"]), name  # the name of SVG's namespace
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", text["index.html"])
    assert not [
        name for name in text if re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text[name])
    ]


def test_every_file_that_the_page_names_exists():
    text = {name: content.decode() for name, content in page_files().items()}
    named = set(re.findall(r"(?:src|href)=\"page/([^\"]+)\"", text["index.html"]))
    named |= {name for content in text.values() for name in re.findall(r"from \"\./([^\"]+)\"", content)}
    assert named == text.keys() - {"index.html"}
