"""Files of tokenizers and image processors, copied; and the two that transformers before 5 reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dq_deploy.errors import ModelError
from dq_deploy.models.load.json_file import read_json

_FAST, _VOCABULARY, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"


def copy_files(source: Path, folder: Path) -> None:
    """Copy the files of a component, links followed; folders in it are left out.

    Args:
        source: folder of the component.
        folder: new folder.
    """
    folder.mkdir()
    for file in sorted(source.iterdir()):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def write_slow_tokenizer(folder: Path, class_name: str) -> None:
    """Write the vocabulary and the merges of CLIP's tokenizer where its folder has `tokenizer.json` alone.

    transformers 5 writes that file only, and the transformers 4 of Optimum reads the other two.

    Args:
        folder: of the tokenizer; it gets the files that are missing.
        class_name: of the tokenizer; others than CLIP's are left as they are.

    Raises:
        ModelError: the file is not of a tokenizer that merges pairs.
    """
    file = folder / _FAST
    if not class_name.startswith("CLIPTokenizer") or (folder / _VOCABULARY).is_file() or not file.is_file():
        return
    model = read_json(file).get("model", {})
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ModelError(f"{file} has no vocab and merges, expected those of a CLIPTokenizer; copy the file again")
    lines = ["#version: 0.2", *(pair if isinstance(pair, str) else " ".join(pair) for pair in merges)]
    (folder / _VOCABULARY).write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / _MERGES).write_text("\n".join(lines) + "\n", encoding="utf-8")
