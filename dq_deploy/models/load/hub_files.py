"""Folders and files as the hub's clients leave them on disk: a cache of snapshots, links into it, and stand-ins."""

from __future__ import annotations

import re
from pathlib import Path

from dq_deploy.artifacts import check_name
from dq_deploy.errors import ModelError

_LFS = b"version https://git-lfs.github.com/spec/"


def snapshot_of(path: Path) -> Path:
    """The snapshot that a folder `models--org--name` of the hub's cache stands for; any other path is itself.

    The snapshot is the one that `refs/main` names, or the only one there is.

    Raises:
        ModelError: there is none, or there are several and nothing says which.
    """
    check_name(path)
    whole = path.parent if path.name == "snapshots" else path
    # by its name as given, or behind `.` and links
    if not any(re.match(r"models--.", place.name) for place in (whole, whole.resolve())):
        return path
    folders = sorted(found for found in (whole / "snapshots").glob("*") if found.is_dir())
    try:
        main = (whole / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        main = ""
    named = [found for found in folders if found.name == main]
    if len(folders) == 1 or named:
        return (named or folders)[0]
    if not folders:
        raise ModelError(f"{path} is a folder of the hub's cache without a snapshot; download the model again")
    raise ModelError(
        f"{path} holds the snapshots {', '.join(found.name for found in folders[:6])} and no refs/main that names "
        "one of them; give the folder of one snapshot"
    )


def check_link(path: Path) -> None:
    """Refuse a link whose target is gone, as a stopped download or a cleaned cache leaves it.

    Raises:
        ModelError: names the link and what it points to.
    """
    if path.is_symlink() and not path.exists():
        raise ModelError(f"{path} is a link to {path.readlink()}, which is not there; download or copy the file again")


def check_not_pointer(path: Path) -> None:
    """Refuse the few lines that Git leaves in the place of a large file.

    Raises:
        ModelError: it is such a file.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise ModelError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull in its folder")
