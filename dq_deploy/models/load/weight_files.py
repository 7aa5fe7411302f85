"""Which files of a folder hold a denoiser's weights: one, or the shards that an index lists."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as short

from dq_deploy.errors import ModelError
from dq_deploy.models.load.hub_files import check_link

STEM = "diffusion_pytorch_model"
SUFFIXES = ("safetensors", "bin")

_ADAPTER = "adapter_config.json"

_OTHER_FILES = (
    ("*.msgpack", "of Flax"),
    ("*.onnx", "an ONNX graph"),
    ("*.gguf", "a GGUF file, quantized elsewhere"),
    ("openvino_*.xml", "an OpenVINO graph"),
    ("pytorch_lora_weights.*", "LoRA factors alone"),
    ("adapter_model.*", "LoRA factors alone"),
    ("model.safetensors", "of a transformers model"),
    ("pytorch_model.bin", "of a transformers model"),
)
"""What a folder may hold instead, in words."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The files that together hold every tensor once.

    Attributes:
        name: the file, or the index that lists them: what messages name.
        files: in the order of their names.
        keys: by file, the tensors the index expects in it; None where there is no index.
    """

    name: Path
    files: tuple[Path, ...]
    keys: dict[Path, frozenset[str]] | None = None


def check_no_adapter(place: Path) -> None:
    """Refuse an adapter (LoRA) beside a model's weights: it is not in them, and what is installed decides who reads it.

    Raises:
        ModelError: there is one.
    """
    if (place / _ADAPTER).exists():
        raise ModelError(
            f"{place} holds an adapter ({_ADAPTER}), expected weights that have it inside; fuse it with diffusers and "
            "save that, or remove the adapter's files to go without it"
        )


def find_weights(folder: Path, variant: str | None) -> WeightFiles:
    """The weights: safetensors before .bin, one file before shards, the plain file before a variant.

    Raises:
        ModelError: there is none, an adapter lies beside it, the asked variant is missing, or several variants and no
            plain file.
    """
    check_no_adapter(folder)
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", variant):
        raise ModelError(f"variant is {variant!r}, expected a word as fp16")
    found = _of_variant(folder, variant)
    if found is not None:
        return found
    variants = set() if variant is not None else _variants(folder)
    if not variants:
        raise ModelError(_none_there(folder, f"{STEM}.{variant}" if variant else STEM))
    if len(variants) > 1:
        raise ModelError(f"{folder} has the variants {', '.join(sorted(variants))} and no plain file; choose one")
    only = _of_variant(folder, min(variants))
    assert only is not None
    return only


def _of_variant(folder: Path, variant: str | None) -> WeightFiles | None:
    middle = f".{variant}" if variant else ""
    for suffix in SUFFIXES:
        candidate = folder / f"{STEM}{middle}.{suffix}"
        check_link(candidate)
        if candidate.is_file():
            return WeightFiles(name=candidate, files=(candidate,))
        # diffusers writes STEM.safetensors.index.fp16.json, older versions STEM.fp16.safetensors.index.json
        for name in (f"{STEM}.{suffix}.index{middle}.json", f"{STEM}{middle}.{suffix}.index.json"):
            check_link(folder / name)
            if (folder / name).is_file():
                return _of_index(folder / name)
    return None


def _variants(folder: Path) -> set[str]:
    """Every variant that the folder has a file or an index of."""
    ends = "|".join(SUFFIXES)
    forms = (
        rf"{STEM}\.(?P<variant>[\w-]+)\.({ends})",
        rf"{STEM}\.({ends})\.index\.(?P<variant>[\w-]+)\.json",
        rf"{STEM}\.(?P<variant>[\w-]+)\.({ends})\.index\.json",
    )
    names = [path.name for path in folder.glob(f"{STEM}*") if not _is_shard(path.name)]
    found = (re.fullmatch(form, name) for form in forms for name in names)
    return {match["variant"] for match in found if match}


def _is_shard(name: str) -> bool:
    return re.search(r"-\d+-of-\d+", name) is not None


def _none_there(folder: Path, stem: str) -> str:
    """What is said of a folder without the weights that are looked for."""
    ours = [path.name for path in sorted(folder.glob(f"{STEM}*"))]
    if ours and all(_is_shard(name) for name in ours):
        return (
            f"{folder} has sharded weights ({ours[0]}) without their index {STEM}.safetensors.index.json; copy it "
            "beside them"
        )
    text = f"{folder} has no {stem}.safetensors or .bin; weight files there: {', '.join(ours[:6]) or 'none'}"
    for pattern, what in _OTHER_FILES:
        if not ours and (other := sorted(folder.glob(pattern))):
            return f"{text}; {other[0].name} is {what}: give the float model as diffusers saves it"
    return text


def _of_index(index: Path) -> WeightFiles:
    """The shards of an index as save_pretrained writes it: `{"weight_map": {tensor: file}}`."""
    try:
        value = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the index of sharded weights {index} is not JSON; copy the file again") from error
    table = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ModelError(f"the index of sharded weights {index} has no weight_map of tensors to files; copy it again")
    keys: dict[Path, set[str]] = {}
    for key, name in table.items():
        if PurePosixPath(name).name != name or name in ("", ".", ".."):
            raise ModelError(f"{index} names the file {short(name)}, expected a file of the same folder")
        keys.setdefault(index.parent / name, set()).add(key)
    for path in keys:
        check_link(path)
    missing = sorted(path.name for path in keys if not path.is_file())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"the sharded weights {index} lack {missing[0]}{more} of {len(keys)} files; copy them beside it"
        )
    return WeightFiles(
        name=index, files=tuple(sorted(keys)), keys={path: frozenset(names) for path, names in keys.items()}
    )
