"""`dq-sample`: images out of an engine, and beside them the float model's from the same noise."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dq_deploy.cli.frame import check_outputs, console, numbers_from_text, progress, run, warn, write_json
from dq_deploy.cli.frame.hash_check import HashCheck

if TYPE_CHECKING:
    from dq_deploy.engines.base import Runner
    from dq_deploy.numerics.arrays import F32
    from dq_deploy.record import Record
    from dq_deploy.sampling import SampleOptions, SamplingStopped


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is sampled: its configuration, and the engine and record it comes from."""

    model_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any] | None
    timesteps: Sequence[float]
    step_edges: Sequence[float]
    record: Record | None
    runner: Runner | None


def sample(
    out: Annotated[Path, typer.Option(help="PNG to write, or .safetensors for the numbers.")],
    ckpt: Annotated[Path | None, typer.Option(help="Quantized model, .pt or .safetensors.")] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="Exported ONNX file, plan or record to run; without it --ckpt is simulated in torch."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Class labels, as 0,1,2 or 0-9; one image each.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Images of a model without classes.")] = 8,
    conditions: Annotated[
        Path | None, typer.Option(help="Safetensors file of embeddings, one row a prompt; random without it.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: as many as were calibrated.")] = None,
    scheduler: Annotated[str, typer.Option(help="ddim or ddpm.")] = "ddim",
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the starting noise and of every step's noise.")] = 0,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 10,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw the float model's images; print PSNR and SSIM.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="Float model for --compare; default: where it was quantized from.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Of the native engine: cpu or cuda; by default a GPU that can run it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; default: the engine's choice.")] = None,
    hash_check: HashCheck = True,
    json: Annotated[Path | None, typer.Option(help="Also write the numbers as JSON.")] = None,
) -> None:
    """Draw images with an engine in the denoiser's place."""
    check_outputs(out, json, inputs=(ckpt, engine, conditions, model))
    wanted = None if labels is None else numbers_from_text(labels, "--labels", low=0)
    from dq_deploy.errors import OptionError
    from dq_deploy.sampling import SampleOptions, labels_for

    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}, expected at least 1")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with ExitStack() as stack:
        subject = _open_subject(ckpt, engine, stack, threads=threads, device=device, hash_check=hash_check)
        options = SampleOptions(
            steps=steps or len(subject.timesteps), scheduler=scheduler, eta=eta, seed=seed, batch=batch
        )
        _check_picture(out, subject)
        given = labels_for(subject.model_config, wanted)
        number = count if given is None else len(given)
        embeddings, words = _conditions(subject, conditions, number, seed)
        float_module = _float_module(subject, model, ckpt or engine) if compare else None
        distance = _report_distance(subject, options)
        summary: dict[str, Any] = {
            "options": asdict(options),
            "labels": None if given is None else given.tolist(),
            "conditions": words,
            "count": number,
            "furthest_from_calibrated": distance,
        }
        images, summary["seconds"] = _draw(subject, options, number, given, embeddings, None)
        reference = None
        if float_module is not None:
            reference, summary["float_seconds"] = _draw(subject, options, number, given, embeddings, float_module)
    captions = [f"#{i}" if given is None else str(given[i]) for i in range(number)]
    _finish(out, json, summary, subject, images, reference, captions)


def _check_picture(out: Path, subject: _Subject) -> None:
    from dq_deploy.errors import OptionError
    from dq_deploy.record.model_config import channels_of
    from dq_deploy.sampling import draws_latents

    if out.suffix != ".safetensors" and draws_latents(subject.model_config):
        raise OptionError(
            f"the model gives latents of {channels_of(subject.model_config, 'in_channels')} channels, which "
            f"{out.name} cannot show; give --out latents.safetensors and decode them with the pipeline's VAE"
        )


def _conditions(subject: _Subject, path: Path | None, number: int, seed: int) -> tuple[dict[str, Any], str | None]:
    """Embeddings of each image, and what they are, in words."""
    from dq_deploy.calibration import read_source
    from dq_deploy.models import input_specs
    from dq_deploy.sampling import conditions_for

    source = read_source(input_specs(subject.model_config), conditions=path)
    found = conditions_for(subject.model_config, source.conditions, count=number, seed=seed)
    if not found:
        return {}, None
    if path is None:
        warn("no --conditions were given: the embeddings are random and stand for no text")
        return found, f"random normal embeddings, seed {seed}"
    return found, source.files["conditions"]


def _open_subject(
    ckpt: Path | None,
    engine: Path | None,
    stack: ExitStack,
    *,
    threads: int | None,
    device: str | None,
    hash_check: bool,
) -> _Subject:
    from dq_deploy.errors import FileProblemError, OptionError
    from dq_deploy.open_engine import RECORD_SUFFIXES, open_engine
    from dq_deploy.record import content_sha256, load_record

    if ckpt is None and engine is None:
        raise OptionError("got neither --ckpt nor --engine, expected at least one of them")
    record = None if ckpt is None else load_record(ckpt, hash_check=hash_check)
    if engine is None:
        assert record is not None
        return _Subject(
            model_config=record.model_config,
            scheduler_config=record.scheduler_config,
            timesteps=record.timesteps.tolist(),
            step_edges=record.step_edges.tolist(),
            record=record,
            runner=None,
        )
    if record is None and engine.suffix in RECORD_SUFFIXES:
        record = load_record(engine, hash_check=hash_check)
    runner = stack.enter_context(open_engine(engine, threads=threads, device=device, hash_check=hash_check))
    manifest = runner.manifest
    assert manifest is not None  # open_engine requires it by default
    if record is not None and content_sha256(record) != manifest.record_sha256:
        raise FileProblemError(
            f"engine {engine} was exported from the record {str(manifest.record_sha256)[:12]}, expected "
            f"{content_sha256(record)[:12]} as in {ckpt}; export it again or give its own --ckpt"
        )
    return _Subject(
        model_config=manifest.model_config,
        scheduler_config=manifest.scheduler_config,
        timesteps=manifest.timesteps,
        step_edges=manifest.step_edges,
        record=record,
        runner=runner,
    )


def _float_module(subject: _Subject, model: Path | None, ckpt: Path | None) -> Any:
    """The float model that was quantized, or the one the user names."""
    from dq_deploy.errors import OptionError
    from dq_deploy.models import load_model

    provenance = {} if subject.record is None else subject.record.provenance
    source = model if model is not None else provenance.get("source")
    if source is None:
        raise OptionError("--compare needs the float model, expected --ckpt with its source, or --model DIR")
    if model is None and not Path(source).exists():
        raise OptionError(f"the float model {source} that {ckpt} names does not exist; give --model DIR")
    denoiser = load_model(source, variant=provenance.get("variant"))
    expected = provenance.get("source_sha256")
    if expected is not None and denoiser.source_sha256 != expected:
        raise OptionError(
            f"the float model {source} has the hash {denoiser.source_sha256[:12]}, expected {expected[:12]}, "
            "the one that was quantized; give it with --model"
        )
    return denoiser.module


def _report_distance(subject: _Subject, options: SampleOptions) -> float:
    """Say how far the sampler's timesteps lie from the calibrated ones; returns the furthest."""
    import numpy as np

    from dq_deploy.sampling import bucket_distances, sampler_timesteps

    asked = sampler_timesteps(subject.scheduler_config, options)
    calibrated = np.asarray(subject.timesteps, np.float32)
    distances = bucket_distances(asked, calibrated, np.asarray(subject.step_edges, np.float32))
    worst = int(distances.argmax())
    if distances[worst] > 0:
        warn(
            f"{int((distances > 0).sum())} of {len(asked)} steps were not calibrated and use the nearest "
            f"bucket; the furthest is timestep {asked[worst]:g}, {distances[worst]:g} away from its bucket's"
        )
    return float(distances[worst])


def _draw(
    subject: _Subject, options: SampleOptions, number: int, labels: Any, conditions: dict[str, Any], float_module: Any
) -> tuple[F32, float]:
    """Images and seconds, of the float module if there is one, else of the engine or the simulation."""
    from dq_deploy.sampling import (
        SamplingStopped,
        denoiser_of_module,
        denoiser_of_runner,
        sample_images,
    )

    if float_module is not None:
        name, denoise = "float model", denoiser_of_module(float_module)
    elif subject.runner is not None:
        name, denoise = "engine", denoiser_of_runner(subject.runner)
    else:
        from dq_deploy.simulation.fake_quant import simulate

        assert subject.record is not None
        name, denoise = "simulation", denoiser_of_module(simulate(subject.record))
    started = time.perf_counter()
    try:
        with progress(f"sampling, {name}") as advance:
            images = sample_images(
                denoise,
                model_config=subject.model_config,
                scheduler_config=subject.scheduler_config,
                count=number,
                labels=labels,
                options=options,
                conditions=conditions,
                on_step=advance,
            )
    except SamplingStopped as stop:
        raise type(stop)(f"{name}: {stop}{_first_layer(subject, stop, float_module)}", **vars(stop)) from stop
    return images, time.perf_counter() - started


def _first_layer(subject: _Subject, stop: SamplingStopped, float_module: Any) -> str:
    """Where the float module, or else the record's simulation, leaves the finite numbers on the same input."""
    if subject.record is None and float_module is None:
        return "; give --ckpt to learn which layer is the first"
    from dq_deploy.sampling import first_non_finite_layer
    from dq_deploy.simulation.fake_quant import simulate

    module = simulate(subject.record) if float_module is None else float_module
    layer = first_non_finite_layer(module, stop.sample, stop.timestep, stop.conditions)
    if layer is None and (float_module is not None or subject.runner is None):
        return "; every layer's output is finite there: check the scheduler's configuration"
    if layer is None:
        return "; the checkpoint's simulation is finite there, so the engine differs from it: run dq-verify"
    return f"; the first layer whose output is not finite is {layer}"


def _finish(
    out: Path,
    json: Path | None,
    summary: dict[str, Any],
    subject: _Subject,
    images: F32,
    reference: F32 | None,
    captions: list[str],
) -> None:
    """Write the grid and the numbers, and print them."""
    from dq_deploy.sampling import constant_images, draws_latents
    from dq_deploy.sampling.grid import write_grid, write_samples

    name = "simulation" if subject.runner is None else "engine"
    rows = [(name, images)]
    if reference is not None:
        rows = [("float", reference), *rows, ("difference", (images - reference) / 2)]
        # latents have no range of their own; pictures lie in [-1, 1]
        span = float(reference.max() - reference.min()) if draws_latents(subject.model_config) else 2.0
        summary |= _distances(images, reference, captions, span)
    summary["constant_images"] = constant_images(images)
    for index in summary["constant_images"]:
        warn(f"image {index} (label {captions[index]}) holds one single value")
    if out.suffix == ".safetensors":
        write_samples(out, dict(rows))
    else:
        write_grid(out, rows, captions)
    if json is not None:
        write_json(json, summary)
    if reference is not None:
        _print_distances(summary)
    rate = len(images) / summary["seconds"]
    what = "latents" if draws_latents(subject.model_config) else "images"
    print(f"{len(images)} {what} by the {name} in {summary['seconds']:.1f} s, {rate:.2f} a second; wrote {out}")


def _distances(images: F32, reference: F32, captions: list[str], span: float) -> dict[str, Any]:
    import numpy as np

    from dq_deploy.quality import SSIM_WINDOW, psnr_db, ssim

    psnr = psnr_db(images, reference, data_range=span)
    # an image smaller than the window has no SSIM
    similarity = ssim(images, reference, data_range=span) if min(images.shape[2:]) >= SSIM_WINDOW else None
    differing = psnr[np.isfinite(psnr)]
    return {
        "data_range": span,
        "images": [
            {
                "caption": caption,
                "psnr_db": float(psnr[i]),
                "ssim": None if similarity is None else float(similarity[i]),
            }
            for i, caption in enumerate(captions)
        ],
        "mean_psnr_db": float(differing.mean()) if len(differing) else None,
        "identical_images": int(len(psnr) - len(differing)),
        "mean_ssim": None if similarity is None else float(similarity.mean()),
    }


def _print_distances(summary: dict[str, Any]) -> None:
    from rich.table import Table

    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    table = Table(title=f"against the float model, same noise, peak {summary['data_range']:.4g}")
    for heading in ("image", "PSNR, dB", "SSIM"):
        table.add_column(heading, justify="right")
    for entry in summary["images"]:
        psnr = "identical" if entry["psnr_db"] == float("inf") else cell(entry["psnr_db"], 2)
        table.add_row(entry["caption"], psnr, cell(entry["ssim"], 4))
    mean = "identical" if summary["mean_psnr_db"] is None else cell(summary["mean_psnr_db"], 2)
    table.add_row("mean", mean, cell(summary["mean_ssim"], 4))
    console().print(table)
    if 0 < summary["identical_images"] < len(summary["images"]):
        print(f"{summary['identical_images']} images are identical and not in the mean PSNR")


def main() -> None:
    """Entry of the console script."""
    run(sample)


if __name__ == "__main__":
    main()
