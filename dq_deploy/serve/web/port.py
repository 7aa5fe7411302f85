"""Where a server listens: said before anything takes time, so nothing heavy is imported here."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dq_deploy.errors import OptionError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Port:
    """Where a server listens.

    Attributes:
        host: name or address; 127.0.0.1 is reached from this machine alone.
        port: 0 for any that is free.
        certificate: file of TLS, PEM; None for plain HTTP.
        key: of the certificate.
        drain_seconds: that requests have to finish when the server is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    key: Path | None = None
    drain_seconds: float = 30.0

    @property
    def is_loopback(self) -> bool:
        """Whether it is reached from this machine alone."""
        return self.host in LOOPBACK


@contextmanager
def bound_socket(port: Port) -> Iterator[socket.socket]:
    """A socket that listens where the server shall.

    Raises:
        OptionError: it cannot, as where another program does.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            port.host, port.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
    except (OSError, UnicodeError) as error:
        raise OptionError(f"`host` is {port.host!r}, which is no address of this machine ({error})") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)
        except (OSError, OverflowError) as error:
            raise OptionError(
                f"cannot listen on {port.host} port {port.port} ({error}); give another `port`"
            ) from error
        yield listener


def check_certificate(port: Port) -> None:
    """Refuse files of TLS that cannot be used, before anything takes time; nobody is asked for a password.

    Raises:
        OptionError: they cannot be read, do not belong together, or the key is encrypted.
    """
    if port.certificate is None or port.key is None:
        return

    def password() -> str:
        raise OptionError(f"`key` {port.key} is encrypted, expected one without a password; decrypt it")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(port.certificate, port.key, password)
    except OSError as error:  # as those of ssl are
        raise OptionError(
            f"`certificate` {port.certificate} and `key` {port.key} cannot be used ({error}); give two PEM files that "
            "belong together"
        ) from error
