"""Where the time of a served picture goes besides the engine: text encoder, scheduler, VAE, the file, and the rest.

Run it as `python -m benchmarks.serving.parts --record demo-out/prompt.pt --model examples/emoji-text-to-image`. One
picture at a time; the engine answers at once with what it gave before.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.numerics.arrays import Array
from dq_deploy.serve import Served, painting
from dq_deploy.serve.opening import open_service
from dq_deploy.serve.orders import Kind, Order, Terms
from dq_deploy.serve.service import Service

SPENT: Counter[str] = Counter()


def timed(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    """A function that adds its time to a part."""

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return own(*args, **kwargs)
        finally:
            SPENT[name] += time.perf_counter() - began

    return run


def watch(service: Service) -> None:
    """Time the parts of a service's pipeline, and let its engine answer at once."""
    pipeline = service.painter.pipelines.main
    for name in ("text_encoder", "text_encoder_2"):
        part = getattr(pipeline, name, None)
        if part is not None:
            part.forward = timed("text encoder", part.forward)
    if getattr(pipeline, "vae", None) is not None:
        pipeline.vae.decode = timed("VAE", pipeline.vae.decode)
    kind = type(pipeline.scheduler)
    kind.step = timed("scheduler", kind.step)
    painting.picture_of = timed("file", painting.picture_of)
    own, known = service.engine.run_checked, {}

    def answer(feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = len(feeds["timestep"])
        if rows not in known:
            known[rows] = own(feeds)
        return known[rows]

    service.engine.run_checked = timed("engine's answer", answer)  # type: ignore[method-assign]


def main() -> None:
    """Print milliseconds a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pictures", type=int, default=40)
    given = parser.parse_args()
    with open_service(Served(engine=given.record, model=given.model, threads=1)) as service:
        card = service.card
        watch(service)
        service.painter.begin_thread()
        for number in range(given.pictures + 2):
            if number == 2:  # the first are slower
                SPENT.clear()
                began = time.perf_counter()
            call = PipelineCall(
                prompts=("red heart",) if card.takes == "prompt" else (),
                labels=None if card.labels is None else (number % 10,),
                steps=card.steps,
                seed=number,
            )
            service.painter.paint(Order(id="timed", kind=Kind.GENERATION, call=call, terms=Terms()), 0)
        whole = time.perf_counter() - began
    each = {name: 1e3 * spent / given.pictures for name, spent in SPENT.items()}
    each["the rest"] = 1e3 * whole / given.pictures - sum(each.values())
    print(f"{card.name}, {card.steps} steps: {1e3 * whole / given.pictures:.2f} ms a picture besides the engine")
    for name, milliseconds in each.items():
        print(f"  {name}: {milliseconds:.2f} ms")


if __name__ == "__main__":
    main()
