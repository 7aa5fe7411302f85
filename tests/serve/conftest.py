"""Tiny models behind a service and behind a port."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def label_service(tiny_record_path):
    """Three classes, 8 x 8 pixels; on one thread, at most four samples a call."""
    from dq_deploy.serve import Limits, Served
    from dq_deploy.serve.opening import open_service

    limits = Limits(max_batch=4, queue=40)
    with open_service(Served(engine=tiny_record_path, steps=6, threads=1, limits=limits)) as service:
        yield service


@pytest.fixture(scope="module")
def text_service(text_model):
    """Pictures of a prompt, with guidance."""
    from dq_deploy.serve import Served
    from dq_deploy.serve.opening import open_service

    served = Served(engine=text_model / "model.pt", model=text_model, steps=5, threads=1)
    with open_service(served) as service:
        yield service
