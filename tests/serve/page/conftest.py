"""A browser, and the real server on small models for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serve.page.browser import Browser
from tests.serve.page.using_the_page import READY

TOKEN = "a secret of this test".replace(" ", "-")


@contextmanager
def serving(**served: object) -> Iterator[str]:
    """A server in a thread of this process, and its address."""
    import uvicorn

    from dq_deploy.serve import Served
    from dq_deploy.serve.opening import open_service
    from dq_deploy.serve.web.app import create_app
    from dq_deploy.serve.web.port import Port, bound_socket

    with open_service(Served(**served, threads=1)) as service, bound_socket(Port(port=0)) as listener:
        config = uvicorn.Config(create_app(service), lifespan="off", log_config=None, timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def command(folder: Path, *options: object) -> Iterator[str]:
    """`dq-serve` on a free port, and its address; SIGTERM must end it well."""
    program = [sys.executable, "-m", "dq_deploy.cli.serve", "--port", "0", "--threads", "1", *map(str, options)]
    with open(folder / "server.log", "w+") as log:
        server = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            line = server.stdout.readline()
            assert " on http://" in line, f"{line}{Path(log.name).read_text()}"
            yield line.split()[-1]
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(40) == 0, Path(log.name).read_text()
            server.stdout.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium") / "profile")
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    """Of a server that draws what a prompt says."""
    pytest.importorskip("transformers")
    from dq_deploy import save_record
    from tests.pipelines.tiny_pipelines import tiny_text_pipeline
    from tests.tiny import random_record, tiny_conditional_denoiser

    folder = tmp_path_factory.mktemp("text")
    denoiser = tiny_conditional_denoiser()
    tiny_text_pipeline(unet=denoiser.module).save_pretrained(folder / "tiny")
    save_record(random_record(denoiser, weight_bits=8), folder / "model.pt")
    with serving(model=folder / "tiny", engine=folder / "model.pt") as address:
        yield address


@pytest.fixture(scope="session")
def closed_address(tmp_path_factory):
    """Of a server that draws what a label says, for those who have a token."""
    from dq_deploy import save_record
    from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

    folder = tmp_path_factory.mktemp("label")
    save_record(random_record(tiny_denoiser(classes=10, **ONE_LEVEL), weight_bits=8), folder / "model.pt")
    (folder / "tokens").write_text(f"# one a line\n{TOKEN}\n")
    with command(folder, "--engine", folder / "model.pt", "--token-file", folder / "tokens") as address:
        yield address


@pytest.fixture(scope="session")
def bare_address(tmp_path_factory):
    """Of a server that takes neither prompt nor label."""
    from dq_deploy import save_record
    from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

    record = tmp_path_factory.mktemp("bare") / "model.pt"
    save_record(random_record(tiny_denoiser(**ONE_LEVEL), weight_bits=8), record)
    with serving(engine=record) as address:
        yield address


@pytest.fixture
def page(browser, address):
    """The page, newly opened; afterwards nothing may have been logged, or asked of another host."""
    browser.size(1280, 800)
    browser.prefer("light")
    browser.errors.clear()
    browser.requests.clear()
    browser.open(f"{address}/")
    browser.wait(READY)
    yield browser
    browser.evaluate("document.querySelector('#cancel').click()")
    browser.wait("!document.querySelector('[data-state=waiting], [data-state=drawing]')")
    assert browser.errors == []
    assert browser.requests
    assert [url for url in browser.requests if not url.startswith((f"{address}/", f"blob:{address}/"))] == []
