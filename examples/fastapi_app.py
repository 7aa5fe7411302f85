"""Pictures in a FastAPI server that you have already.

    pip install -c constraints.txt -e '.[serve,pipelines]'
    python examples/fastapi_app.py --model examples/emoji-text-to-image --engine demo-out/prompt.pt --port 8000

Two ways: the whole server is mounted below a path, with OpenAI's images API and its page; and a route of your own asks
the same service. Requests of both share the engine's calls.

    curl -s http://127.0.0.1:8000/pictures/v1/models
    curl -s 'http://127.0.0.1:8000/sticker?of=red%20heart&seed=3' > sticker.png
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException, Response

from dq_deploy.errors import DqError
from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.serve import Served
from dq_deploy.serve.opening import open_service
from dq_deploy.serve.orders import Failure, Picture, Terms
from dq_deploy.serve.web.app import create_app
from dq_deploy.serve.web.channel import Channel


def your_app(served: Served) -> FastAPI:
    """A server with routes of its own, and pictures."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with open_service(served) as service:
            app.state.service = service
            app.mount("/pictures", create_app(service))
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/sticker")
    async def sticker(of: str, seed: int = 0) -> Response:
        """A picture of your own route, urgent and within ten seconds."""
        channel, service = Channel(), app.state.service
        try:
            call = PipelineCall(prompts=(of,), seed=seed, steps=service.card.steps)
            order = service.submit(call, Terms(client="stickers", priority=1, time_limit_s=10), listener=channel.tell)
        except DqError as error:
            raise HTTPException(400, str(error)) from error
        try:
            event = await channel.next()
        finally:
            service.cancel(order.id)  # nothing, where it is done
        if isinstance(event, Failure):
            raise HTTPException(503, event.message)
        assert isinstance(event, Picture)
        return Response(event.data, media_type="image/png")

    return app


def main() -> None:
    """Serve on a port of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    uvicorn.run(your_app(Served(model=given.model, engine=given.engine)), port=given.port)


if __name__ == "__main__":
    main()
