"""The page at `/` of the image server: a folder of files, held in memory and served by their exact names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import APIRouter, Response

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""What the server says of a file of the page, by its ending."""

INDEX = "index.html"
"""The file that `/` answers with; every other file stands under `/page/`."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Sent with every file: nothing inline runs, nothing is asked of another host, nobody frames the page."""


def page_files() -> dict[str, bytes]:
    """Every file of the page by its name, read from the installed package.

    Returns:
        Bytes by name, `index.html` among them.
    """
    found = [file for file in files(__name__).iterdir() if file.name.rpartition(".")[2] in MEDIA_TYPES]
    return {file.name: file.read_bytes() for file in sorted(found, key=lambda file: file.name)}


def page_router() -> APIRouter:
    """The page at `/` and its files under `/page/`, a route for each: no path of a request reaches the disk.

    Returns:
        A router for `include_router`; its routes are left out of the OpenAPI description.

    Raises:
        ModuleNotFoundError: Where fastapi is not installed.
    """
    from fastapi import APIRouter

    router = APIRouter(include_in_schema=False)
    for name, content in page_files().items():
        path = "/" if name == INDEX else f"/page/{name}"
        router.add_api_route(path, _answer(name, content), methods=["GET", "HEAD"], name=f"page {name}")
    return router


def _answer(name: str, content: bytes) -> Callable[[], Awaitable[Response]]:
    """A handler that answers with one file."""
    from fastapi import Response

    async def answer() -> Response:
        return Response(content, media_type=MEDIA_TYPES[name.rpartition(".")[2]], headers=HEADERS)

    # FastAPI reads the annotation of what a handler gives back; here it would be a name it cannot look up
    answer.__annotations__["return"] = Response
    return answer
