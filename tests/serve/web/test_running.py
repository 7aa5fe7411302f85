"""What is looked at before a server runs: its certificate, and a signal that comes early."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest
import uvicorn

from dq_deploy.errors import OptionError
from dq_deploy.serve.web.port import Port, check_certificate
from dq_deploy.serve.web.running import _signals_end_only


def test_a_signal_before_the_server_runs_ends_it():
    server = uvicorn.Server(uvicorn.Config("no:app", log_config=None))
    before = signal.getsignal(signal.SIGTERM)
    with _signals_end_only(server):
        os.kill(os.getpid(), signal.SIGTERM)
    assert server.should_exit
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is missing")
def test_a_key_that_cannot_be_used_is_refused_and_nobody_is_asked_for_its_password(tmp_path):
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert", "-subj", "/CN=x")
    openssl("rsa", "-aes256", "-passout", "pass:abcd", "-in", "key", "-out", "encrypted")
    openssl("genrsa", "-out", "other", "2048")
    check_certificate(Port(certificate=tmp_path / "cert", key=tmp_path / "key"))
    for key, message in (("encrypted", "is encrypted"), ("other", "cannot be used"), ("missing", "cannot be used")):
        with pytest.raises(OptionError, match=message):
            check_certificate(Port(certificate=tmp_path / "cert", key=tmp_path / key))
