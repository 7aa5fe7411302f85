"""The whole path on the demo model, command by command, a summary table, and a prompt drawn in integers at the end.

    python examples/demo.py --out demo-out          (or: make demo)

On a terminal it asks for the prompt; with `--prompt` or elsewhere it does not.
Nothing of the library is called here: each step is the console command as a user would type it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT = "grinning face"
OTHER_PROMPTS = ("thumbs up sign", "soccer ball", "france flag", "red heart", "police officer")
GUIDANCE = "3"


def run(command: list[str]) -> float:
    """Print a command, run it, and return its seconds; end with its exit code if it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    program = shutil.which(command[0])
    if program is None:
        sys.exit(f"error: {command[0]} is not on the PATH; install the package first (make setup)")
    started = time.perf_counter()
    code = subprocess.run([program, *command[1:]], check=False).returncode
    if code:
        print(f"error: {command[0]} ended with {code}", file=sys.stderr)
        sys.exit(code)
    return time.perf_counter() - started


def commands(out: Path, *, model: str, preset: str, threads: int) -> dict[str, list[str]]:
    """The commands, by name; the plan only where its builder is installed."""
    ckpt, engine = str(out / "model.pt"), str(out / "unet.onnx")
    quantize = [
        "dq-quantize",
        "--model",
        model,
        "--method",
        "dilatequant",
        "--weights",
        "4",
        "--activations",
        "8",
    ]
    quantize += ["--steps", "20", "--preset", preset, "--out", ckpt]
    verify = ["dq-verify", "--ckpt", ckpt, "--engine", engine, "--exact", "--require-integer", "0.95"]
    bench = ["dq-bench", "--engine", engine, "--ckpt", ckpt, "--baseline", "--threads", str(threads)]
    labels = ",".join(str(label) for label in range(10))
    sample = [
        "dq-sample",
        "--ckpt",
        ckpt,
        "--engine",
        engine,
        "--labels",
        labels,
        "--steps",
        "20",
        "--compare",
    ]
    plan = str(out / "unet.plan")
    build = ["dq-build", "--ckpt", ckpt, "--out", plan, "--json", str(out / "build.json")]
    read = [
        "dq-verify",
        "--ckpt",
        ckpt,
        "--engine",
        plan,
        "--require-integer",
        "0.95",
        "--json",
        str(out / "plan.json"),
    ]
    plans = {"build": build, "attest": [*read, "--json", str(out / "plan.json")]} if find_spec("tensorrt_rtx") else {}
    return {
        "quantize": quantize,
        "export": ["dq-export", "--ckpt", ckpt, "--out", engine],
        "verify": [*verify, "--json", str(out / "verify.json"), "--html", str(out / "report.html")],
        "bench": [*bench, "--json", str(out / "bench.json"), "--png", str(out / "bench.png")],
        "sample": [*sample, "--out", str(out / "samples.png"), "--json", str(out / "samples.json")],
        **(native_commands(out, ckpt, labels, threads) if kernels_are_built() else {}),
        **plans,
    }


def kernels_are_built() -> bool:
    """Whether the install found a compiler; without one the record runs on the library engines alone."""
    package = find_spec("dq_kernels")
    folders = (package.submodule_search_locations or ()) if package is not None else ()
    return any((Path(folder) / "_cpu.so").is_file() for folder in folders)


def native_commands(out: Path, ckpt: str, labels: str, threads: int) -> dict[str, list[str]]:
    """The record itself as the engine; the float graph is timed beside it."""
    verify = ["dq-verify", "--engine", ckpt, "--exact", "--require-integer", "0.95", "--inputs", "1"]
    bench = ["dq-bench", "--engine", ckpt, "--baseline", "--batch", "1", "--threads", str(threads)]
    sample = ["dq-sample", "--engine", ckpt, "--labels", labels, "--steps", "20", "--out", str(out / "native.png")]
    return {
        "verify natively": [*verify, "--json", str(out / "native.json")],
        "bench natively": [*bench, "--json", str(out / "native_bench.json")],
        "sample natively": [*sample, "--json", str(out / "native_samples.json")],
    }


def prompt_commands(out: Path, *, model: str, prompts: tuple[str, ...], threads: int) -> dict[str, list[str]]:
    """The text-to-image model in integers, and what it draws for each prompt beside the float model.

    Its engine is the record, run by our own kernels, or simulated where they were not built.
    """
    ckpt = str(out / "prompt.pt")
    guided = ["--steps", "10", "--guidance", GUIDANCE]
    quantize = ["dq-quantize", "--model", model, "--prompts", f"{model}/calibration.txt", *guided, "--samples", "16"]
    sample = ["dq-sample", "--model", model, "--ckpt", ckpt, *(["--engine", ckpt] if kernels_are_built() else [])]
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    return {
        "quantize": [*quantize, "--method", "minmax", "--weights", "8", "--activations", "8", "--out", ckpt],
        "sample": [*sample, *asked, *guided, "--threads", str(threads), "--compare", "--out", str(out / "prompt.png")],
    }


def typed_prompt(given: str | None) -> str:
    """The prompt that was given, or else typed on a terminal; an empty line and any other place mean the usual one."""
    if given is not None:
        return given
    if not sys.stdin.isatty():
        return PROMPT
    return input(f"\nWhat shall be drawn? [{PROMPT}] ").strip() or PROMPT


def draw_prompt(out: Path, *, given: str | None, threads: int) -> None:
    """Quantize the text-to-image model, ask for a prompt and draw it; say so where the extra `pipelines` is missing."""
    if find_spec("transformers") is None:
        print("\nno prompt is drawn: pip install 'dq-deploy[pipelines]'")
        return
    model = shipped("emoji-text-to-image")
    run(prompt_commands(out, model=model, prompts=(PROMPT,), threads=threads)["quantize"])
    prompts = (typed_prompt(given), *OTHER_PROMPTS)
    run(prompt_commands(out, model=model, prompts=prompts, threads=threads)["sample"])
    print(f"\n{out / 'prompt.png'}: above float, below integers, from the same noise; {prompts[0]!r} on the left")


def shipped(name: str) -> str:
    """Path of a folder beside this file, short where that is possible."""
    path = HERE / name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def summary_rows(out: Path, seconds: dict[str, float]) -> list[tuple[str, str]]:
    """What the JSON files say, one row a fact."""
    verify, bench, sample = (
        json.loads((out / f"{name}.json").read_text(encoding="utf-8")) for name in ("verify", "bench", "samples")
    )
    compared = f"{verify['layers_compared']} of {verify['layers_total']}"
    psnr = verify["output_psnr_db"]
    return [
        ("layers compared bit for bit", compared),
        ("codes compared", f"{verify['codes_compared']:,}"),
        ("accumulators compared", f"{verify['accumulators_compared']:,}"),
        ("largest difference of a code", str(verify["max_code_difference"])),
        ("largest difference of an accumulator", str(verify["max_accumulator_difference"])),
        ("integer share of all MACs", f"{100 * verify['integer_mac_share']:.2f} %"),
        ("engine output against simulation", "bit-equal" if psnr is None or psnr >= 200 else f"{psnr:.1f} dB"),
        ("latency, batch 1, integer engine", f"{bench['latency_ms']['p50']:.2f} ms"),
        ("latency, batch 1, float baseline", f"{bench['baseline_latency_ms']['p50']:.2f} ms"),
        ("speedup over the float baseline", f"{bench['speedup']:.2f}x"),
        (
            "engine file, float baseline file",
            f"{bench['file_mib']:.2f} MiB, {bench['baseline_file_mib']:.2f} MiB",
        ),
        *native_rows(out),
        ("images against float, PSNR", f"{sample['mean_psnr_db']:.2f} dB"),
        ("images against float, SSIM", f"{sample['mean_ssim']:.4f}"),
        *plan_rows(out),
        *((f"time of {name}", f"{value:.1f} s") for name, value in seconds.items()),
        ("time in all", f"{sum(seconds.values()):.1f} s"),
    ]


def native_rows(out: Path) -> list[tuple[str, str]]:
    """The same record on this project's own kernels, with the float graph timed beside it."""
    if not (out / "native.json").is_file():
        return [("native engine", "not run: the CPU kernels were not built, which needs a C++17 compiler")]
    verify, bench, sample = (
        json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("native", "native_bench", "native_samples")
    )
    compared = f"{verify['layers_compared']} of {verify['layers_total']}"
    gaps = verify["max_code_difference"], verify["max_accumulator_difference"]
    return [
        ("native engine, layers compared bit for bit", f"{compared}, largest differences {gaps[0]} and {gaps[1]:g}"),
        ("native engine, integer share of all MACs", f"{100 * verify['integer_mac_share']:.2f} %"),
        ("native engine, latency, batch 1", f"{bench['latency_ms']['p50']:.2f} ms"),
        ("native engine, speedup over float ONNX Runtime", f"{bench['speedup']:.2f}x"),
        (
            "native engine, peak memory, float's",
            f"{bench['peak_mib']:.0f} MiB, {bench['baseline_peak_mib']:.0f} MiB",
        ),
        ("native engine, instruction set", bench["environment"]["native"]["isa"]),
        ("native engine, images a second, 20 steps", f"{sample['count'] / sample['seconds']:.2f}"),
    ]


def plan_rows(out: Path) -> list[tuple[str, str]]:
    """The same about the TensorRT-RTX plan, where one was built."""
    if not (out / "build.json").is_file():
        return [("TensorRT-RTX plan", "not built: pip install 'dq-deploy[tensorrt-rtx]'")]
    built, read = (json.loads((out / f"{name}.json").read_text(encoding="utf-8")) for name in ("build", "plan"))
    return [
        ("TensorRT-RTX plan", f"{built['plan_mib']:.2f} MiB, built for {', '.join(built['compute_capabilities'])}"),
        ("its integer share of all MACs, by its own text", f"{100 * read['integer_mac_share']:.2f} %"),
    ]


def main(argv: list[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the results")
    parser.add_argument("--model", default=None, help="float model; default: the demo model beside this file")
    parser.add_argument("--preset", default="balanced", help="of dq-quantize: fast, balanced, best, or a YAML file")
    parser.add_argument("--threads", type=int, default=2, help="threads of the timed engines")
    parser.add_argument("--prompt", default=None, help="of the picture at the end")
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: {args.out}: {error.strerror}; choose another place")
    model = args.model or shipped("mnist-ddpm-32")
    steps = commands(args.out, model=model, preset=args.preset, threads=args.threads)
    seconds = {name: run(command) for name, command in steps.items()}
    rows = summary_rows(args.out, seconds)
    width = max(len(name) for name, _ in rows)
    print(f"\n{'-' * (width + 24)}\nthe demo model in W4A8, 20 steps\n{'-' * (width + 24)}")
    for name, value in rows:
        print(f"{name:<{width}}  {value}", flush=True)
    draw_prompt(args.out, given=args.prompt, threads=args.threads)
    print(f"\nleft in {args.out}/: {', '.join(sorted(path.name for path in args.out.iterdir()))}")


if __name__ == "__main__":
    main()
