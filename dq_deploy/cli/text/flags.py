"""Command-line flags by the Python name of the option: library messages name the option, a command says its flag.

A library message names an option in backticks, with a value where it advises one, and with a command in front where
the advice is about another command:

    `compute_capabilities` got '8.99', ...      ->  --compute-capability got '8.99', ...
    use `method="minmax"`                       ->  use --method minmax
    record with dq-export `target="openvino"`   ->  record with dq-export --target openvino
    use `resume=False`                          ->  use --no-resume

A Python user reads the left side, a command-line user the right one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_RUN = {
    "threads": "--threads",
    "device": "--device",
    "attention": "--attention",
    "hash_check": "--hash-check/--no-hash-check",
}

FLAGS: Mapping[str, Mapping[str, str]] = {
    "dq-serve": {
        **_RUN,
        "record": "--ckpt",
        "engine": "--engine",
        "model": "--model",
        "component": "--component",
        "scheduler": "--scheduler",
        "steps": "--steps",
        "name": "--name",
        "host": "--host",
        "port": "--port",
        "max_batch": "--max-batch",
        "instances": "--instances",
        "queue": "--queue",
        "time_limit": "--time-limit",
        "isa": "--isa",
        "metrics_port": "--metrics-port",
        "otel_endpoint": "--otel-endpoint",
        "replicas": "--replicas",
        "max_replicas": "--max-replicas",
        "image": "--image",
        "claim": "--claim",
        "memory_gib": "--memory-gib",
        "prometheus": "--prometheus",
        "pipeline_threads": "--pipeline-threads",
        "tokens": "--token-file",
        "certificate": "--certificate",
        "key": "--key",
        "proof": "--proof",
    },
    "dq-quantize": {
        "QuantizeOptions": "dq-quantize --help",
        "quantizable_layers": "--list-layers",
        "folder": "--out",
        "method": "--method",
        "init": "--init",
        "block_size": "--block-size",
        "channel_scales": "--channel-scales",
        "steps": "--steps",
        "split_skips": "--split-skips/--whole-skips",
        "keep": "--keep",
        "budget": "--budget",
        "activation_budget": "--activation-budget",
        "step_correction": "--step-correction",
        "picture_iterations": "--picture-iterations",
        "labels": "--labels",
        "kind": "--calibration",
        "conditions": "--conditions",
        "latents": "--latents",
        "prompts": "--prompts",
        "negative_prompt": "--negative-prompt",
        "guidance": "--guidance",
        "scheduler": "--scheduler",
        "height": "--height",
        "width": "--width",
        "call": "--call",
        "prompt": "a line of --prompts",
        **{key: f"{key} in --call" for key in ("image", "mask", "control_image", "strength")},
        "samples": "--samples",
        "memory_gib": "--memory-gib",
        "device": "--device",
        "attention": "--attention",
        "calibration_choice": "--calibration-choice",
        "resume_dir": "--out/--no-resume",  # OUT.resume, where no other folder is given
        "engine": "--engine",
        "component": "--component",
        "config": "--config",
    },
    "dq-export": {
        "target": "--target",
        "mode": "--mode",
        "float_type": "--float-type",
        "conv": "--conv",
        "layout": "--layout",
        "model": "--model",
        "component": "--component",
        "isa": "--isa",
        "write_program_file": "dq-export --target native",
        "hash_check": "--hash-check/--no-hash-check",
    },
    "dq-build": {
        "onnx": "--onnx",
        "runtime": "--runtime",
        "compute_capabilities": "--compute-capability",
        "shapes": "--shapes",
        "timing_cache": "--timing-cache",
        "workspace_mib": "--workspace-mib",
        "time_limit_s": "--time-limit",
        "log": "--log",
        "keep_onnx": "--keep-onnx",
        "float_type": "--float-type",
        "conv": "--conv",
        "hash_check": "--hash-check/--no-hash-check",
    },
    "dq-verify": {"engine": "--engine", "record": "--ckpt", "model": "--float-model", "exact": "--exact", **_RUN},
    "dq-bench": {"baseline": "--baseline", "engine": "--engine", "batches": "--batch", **_RUN},
    "dq-sample": {
        "record": "--ckpt",
        "engine": "--engine",
        "model": "--model",
        "component": "--component",
        "prompt": "--prompt",
        "negative_prompt": "--negative-prompt",
        "guidance": "--guidance",
        "image": "--image",
        "mask": "--mask",
        "strength": "--strength",
        "control_image": "--control-image",
        "height": "--height",
        "width": "--width",
        "call": "--call",
        "labels": "--labels",
        "count": "--count",
        "conditions": "--conditions",
        "steps": "--steps",
        "scheduler": "--scheduler",
        "eta": "--eta",
        "compare": "--compare",
        **_RUN,
    },
    "dq-import": {
        "reader": "--from",
        "checkpoint": "--ckpt",
        "float_model": "--float",
        "component": "--component",
        "settings": "--settings",
        "masks": "--masks",
    },
    "dq-tune": {"model": "--model", "dtype": "--dtype", "device": "--device", "op": "--op", "jobs": "--jobs"},
}
"""Command -> Python name of an option -> its flag; `--on/--off` where False or None has a flag of its own."""

REFERENCE = re.compile(
    r"(?<![^\s(])"  # a word of its own: what is quoted inside a path or a name is none
    r"(?:(?P<command>dq-[a-z]+) )?"
    r"(?P<quoted>`(?P<name>[A-Za-z][A-Za-z0-9_]*)(?:=(?:\"(?P<text>[^\"`]*)\"|(?P<word>[\w.]+)))?`)"
    r"(?=[\s,;:.)]|$)"
)
"""An option in a library message."""


def flag_of(name: str, command: str) -> str | None:
    """The flag of an option in a command, or in the others where this one has none; None where they disagree."""
    own = FLAGS.get(command, {}).get(name)
    if own is not None:
        return own
    found = {flags[name] for flags in FLAGS.values() if name in flags and flags[name].startswith(("--", "dq-"))}
    return found.pop() if len(found) == 1 else None


def with_flags(message: str, command: str, foreign: Sequence[str] = ()) -> str:
    """A library message as the user of a command reads it.

    Args:
        message: with options in backticks.
        command: the running one, such as `dq-build`.
        foreign: texts that are not the library's, such as the arguments of the command line; what stands in backticks
            there stays as it is.

    Returns:
        The message; an option that no command has stays in backticks.
    """

    def spoken(match: re.Match[str]) -> str:
        flag = flag_of(match["name"], match["command"] or command)
        if flag is None or any(match["quoted"] in text for text in foreign):
            return match[0]
        on, _, off = flag.partition("/")
        value = match["word"] if match["text"] is None else match["text"]
        if off and value in ("True", "False", "None"):
            on, value = on if value == "True" else off, None
        return " ".join(piece for piece in (match["command"], on, value) if piece)

    return REFERENCE.sub(spoken, message)
