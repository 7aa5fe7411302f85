"""The example of a server that is there already draws by its own route and by the one that is mounted in it."""

from __future__ import annotations

import base64

import pytest

pytest.importorskip("transformers", reason="needs transformers for a pipeline of text")

from fastapi.testclient import TestClient

from dq_deploy.serve import Served


def test_both_ways_draw_the_same(script, text_model):
    your_app = script("fastapi_app.py").your_app
    served = Served(engine=text_model / "model.pt", model=text_model, steps=3, threads=1)
    with TestClient(your_app(served)) as client:
        own = client.get("/sticker", params={"of": "a cat", "seed": 3})
        mounted = client.post("/pictures/v1/images/generations", json={"prompt": "a cat", "seed": 3})
        refused = client.get("/sticker", params={"of": " "})
        page = client.get("/pictures/")
    assert own.headers["content-type"] == "image/png"
    assert own.content == base64.b64decode(mounted.json()["data"][0]["b64_json"])
    assert refused.status_code == 400
    assert page.text.startswith("<!doctype html>")
