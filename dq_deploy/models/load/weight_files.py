"""Which files of a folder hold a denoiser's weights: one, or the shards that an index lists."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as short

from dq_deploy.errors import ModelError

STEM = "diffusion_pytorch_model"
SUFFIXES = ("safetensors", "bin")


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


def find_weights(folder: Path, variant: str | None) -> WeightFiles:
    """The weights: safetensors before .bin, one file before shards, the plain file before a variant.

    Raises:
        ModelError: there is none, the asked variant is missing, or several variants and no plain file.
    """
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", variant):
        raise ModelError(f"variant is {variant!r}, expected a word as fp16")
    middle = f".{variant}" if variant else ""
    for suffix in SUFFIXES:
        candidate = folder / f"{STEM}{middle}.{suffix}"
        if candidate.is_file():
            return WeightFiles(name=candidate, files=(candidate,))
        # diffusers writes STEM.safetensors.index.fp16.json, older versions STEM.fp16.safetensors.index.json
        for index in (f"{STEM}.{suffix}.index{middle}.json", f"{STEM}{middle}.{suffix}.index.json"):
            if (folder / index).is_file():
                return _of_index(folder / index)
    others = sorted(
        p for p in folder.glob(f"{STEM}*") if p.suffix in (".safetensors", ".bin") and not _is_shard(p.name)
    )
    if variant is not None or not others:
        there = ", ".join(p.name for p in sorted(folder.glob(f"{STEM}*"))[:6]) or "none"
        raise ModelError(f"{folder} has no {STEM}{middle}.safetensors or .bin; weight files there: {there}")
    variants = {p.name.split(".")[1] for p in others}
    if len(variants) > 1:
        raise ModelError(f"{folder} has the variants {', '.join(sorted(variants))} and no plain file; choose one")
    return WeightFiles(name=others[0], files=(others[0],))


def _is_shard(name: str) -> bool:
    return re.search(r"-\d+-of-\d+", name) is not None


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
    missing = sorted(path.name for path in keys if not path.is_file())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"the sharded weights {index} lack {missing[0]}{more} of {len(keys)} files; copy them beside it"
        )
    return WeightFiles(
        name=index, files=tuple(sorted(keys)), keys={path: frozenset(names) for path, names in keys.items()}
    )
