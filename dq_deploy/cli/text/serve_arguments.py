"""The options of `dq-serve`, with what its help says of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dq_deploy.cli.frame.attention import Attention
from dq_deploy.cli.frame.hash_check import HashCheck


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """What stands on the command line, in the order of the help; None is an option that was not given."""

    engine: Annotated[Path, typer.Option(help="Exported ONNX file, plan or record to run.")]
    model: Annotated[
        Path | None, typer.Option(help="Pipeline folder of diffusers that draws; without it the denoiser alone does.")
    ] = None
    ckpt: Annotated[Path | None, typer.Option(help="Record of an exported engine: the two are compared.")] = None
    component: Annotated[
        str | None, typer.Option(help="Denoiser of a pipeline that has several, as prior or transformer_2.")
    ] = None
    name: Annotated[str | None, typer.Option(help="Of the model in requests; default: the folder's.")] = None
    scheduler: Annotated[
        str | None, typer.Option(help="Class of diffusers, or a short name as ddim, euler; default: as calibrated.")
    ] = None
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps where a request says none; default: as calibrated.")
    ] = None
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback wants --token-file.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="To listen on; 0 for any that is free.")] = 8000
    max_batch: Annotated[int, typer.Option(help="Samples of one call of the engine; guidance counts as two.")] = 8
    instances: Annotated[
        int, typer.Option(help="Engines of the same file, side by side, each with --threads and its own memory.")
    ] = 1
    queue: Annotated[int, typer.Option(help="Pictures that may wait; further requests get status 429.")] = 256
    time_limit: Annotated[float, typer.Option(help="Seconds until a request fails.")] = 300.0
    threads: Annotated[int | None, typer.Option(help="Threads of the engine; default: it decides.")] = None
    pipeline_threads: Annotated[int, typer.Option(help="Threads of text encoder, scheduler and VAE.")] = 1
    isa: Annotated[
        str | None, typer.Option(help="Instruction set of the native engine; on a CPU without it nothing is served.")
    ] = None
    device: Annotated[str | None, typer.Option(help="Of the native engine: auto, cpu or cuda.")] = None
    attention: Attention = None
    proof: Annotated[
        Path | None, typer.Option(help="JSON of dq-verify on this engine, to be shown on the model's card.")
    ] = None
    token_file: Annotated[
        Path | None, typer.Option(help="File of tokens, one a line; requests then bring one of them.")
    ] = None
    certificate: Annotated[Path | None, typer.Option(help="PEM file for HTTPS, with --key.")] = None
    key: Annotated[Path | None, typer.Option(help="Private key of the certificate.")] = None
    drain: Annotated[float, typer.Option(help="Seconds that requests have to finish when the server stops.")] = 30.0
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log.")] = False
    otel_endpoint: Annotated[
        str | None, typer.Option(help="URL that takes OpenTelemetry traces, as http://127.0.0.1:4318/v1/traces.")
    ] = None
    metrics_port: Annotated[
        int | None, typer.Option(help="Besides --port: the metrics alone, without token and TLS.")
    ] = None
    write_triton: Annotated[
        Path | None,
        typer.Option(help="Serve nothing; write a model repository for Triton Inference Server into this folder."),
    ] = None
    write_kubernetes: Annotated[
        Path | None,
        typer.Option(help="Serve nothing; write a manifest for Kubernetes with these options."),
    ] = None
    write_kserve: Annotated[
        Path | None, typer.Option(help="Serve nothing; write an InferenceService of KServe and KEDA's ScaledObject.")
    ] = None
    replicas: Annotated[int | None, typer.Option(help="Of a manifest: servers side by side; default: 2.")] = None
    max_replicas: Annotated[
        int | None,
        typer.Option(help="Of a manifest: as many as KEDA may start; default: --replicas, and 10 with --write-kserve."),
    ] = None
    image: Annotated[
        str | None, typer.Option(help="Of a manifest: container image with dq-serve; default: dq-deploy:VERSION.")
    ] = None
    claim: Annotated[
        str | None, typer.Option(help="Of a manifest: volume claim that holds the files; default: NAME-models.")
    ] = None
    memory_gib: Annotated[
        float | None, typer.Option(help="Of a manifest: memory of a replica; default: asked for by the files' sizes.")
    ] = None
    prometheus: Annotated[str | None, typer.Option(help="Of a manifest: URL of the Prometheus that KEDA asks.")] = None
    hash_check: HashCheck = True
