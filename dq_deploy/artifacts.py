"""Files the tools write: complete under their final name, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

from dq_deploy.errors import FileProblemError, ReaderGoneError

NPZ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, BadZipFile, zlib.error)
"""What `numpy.load` raises for a file that is missing, damaged, truncated, or no archive of arrays."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HIDES_ERRORS = ("safetensors", "safetensors_rust")
"""Libraries whose own class stands for what the system said."""

_MOST_LINKS = 40
_NAME_BYTES = 180
"""Of an output's name in that of its temporary file; a file system takes 255 in all."""


@dataclass(frozen=True, kw_only=True)
class OutputPlace:
    """Where the bytes of an output go.

    Attributes:
        path: the file that is written, links followed; of a stream the name it was given.
        streams: whether it is a pipe or a device, which gets the bytes and is not replaced.
        descriptor: of this process, where the name stands for one, as /dev/stdout.
    """

    path: Path
    streams: bool = False
    descriptor: int | None = None


def sha256_of_bytes(data: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_name(path: Path) -> None:
    """Refuse a name with a NUL character, which no file has.

    Raises:
        FileProblemError: it has one.
    """
    if "\0" in str(path):
        raise FileProblemError(f"the name {str(path)!r} holds a NUL character, which no file's name has; give another")


def check_no_stream(path: Path) -> None:
    """Refuse a pipe, a socket or a device where a file is read: it gives its bytes once, and none of it can be mapped.

    Raises:
        FileProblemError: it is one.
    """
    check_name(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FileProblemError(
            f"{path} is a pipe or a device, expected a file, which is read more than once; copy it into one"
        )


def with_files_beside(path: Path) -> Path:
    """A file that is read with others beside it: a link is followed where its manifest lies beside the target only."""
    if path.is_symlink() and not path.with_name(f"{path.name}.json").exists():
        return Path(os.path.realpath(path))
    return path


def checked_name(path: Path, suffix: str) -> Path:
    """The path of an output, whose suffix says to who opens it what it is.

    Raises:
        FileProblemError: it has another suffix.
    """
    if path.suffix != suffix:
        raise FileProblemError(f"output {path} has the extension {path.suffix!r}, expected {suffix}; rename it")
    return path


def is_utf8(path: Path) -> bool:
    """Whether a name is UTF-8: compiled libraries take no other."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@contextlib.contextmanager
def utf8_name(path: Path) -> Iterator[Path]:
    """Yield a name of the file that every library can take: a link elsewhere where its own is no UTF-8."""
    if is_utf8(path):
        yield path
    else:
        with tempfile.TemporaryDirectory(prefix="dq-") as folder:
            alias = Path(folder) / f"file{os.fsencode(path.suffix).decode('ascii', 'ignore')}"
            alias.symlink_to(path.absolute())
            yield alias


def place_of_output(path: Path) -> OutputPlace:
    """What an output's name stands for; a link that points nowhere yet stands for its target.

    Raises:
        FileProblemError: a folder, a socket, a closed descriptor, or a name that cannot be looked up.
    """
    path = Path(path)
    check_name(path)
    descriptor = _own_descriptor(path)
    try:
        kind = os.stat(path if descriptor is None else descriptor).st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBADF, errno.ENOTDIR):
            raise _write_error(path, error) from error
        kind = None
    if descriptor is not None:
        if kind is None or fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise FileProblemError(f"cannot write {path}: it is not open for writing; choose another place")
        return OutputPlace(path=path, streams=True, descriptor=descriptor)
    if kind is None or stat.S_ISREG(kind):
        return OutputPlace(path=Path(os.path.realpath(path)) if path.is_symlink() else path)
    if stat.S_ISDIR(kind):
        raise FileProblemError(f"output {path} is a folder, expected a file name; add one")
    if stat.S_ISSOCK(kind):
        raise FileProblemError(f"output {path} is a socket, expected a file, a pipe or a device; choose another place")
    return OutputPlace(path=path, streams=True)


def _own_descriptor(path: Path) -> int | None:
    """The descriptor that a name such as /dev/stdout or /dev/fd/3 stands for; a name elsewhere stands for none."""
    current = os.path.abspath(path)
    for _ in range(_MOST_LINKS):
        parent, name = os.path.realpath(os.path.dirname(current)), os.path.basename(current)
        if re.fullmatch(rf"/proc/{os.getpid()}(/task/\d+)?/fd", parent) and name.isdecimal():
            return int(name)
        try:
            current = os.path.normpath(os.path.join(parent, os.readlink(os.path.join(parent, name))))
        except OSError:  # no link
            return None
    return None


def file_for_several(path: Path, beside: str) -> Path:
    """The file that a name stands for, where other files are written beside it.

    Args:
        path: an output.
        beside: what lies beside it, in words.

    Raises:
        FileProblemError: a pipe or a device, beside which nothing lies, or what `place_of_output` refuses.
    """
    place = place_of_output(path)
    if place.streams:
        raise FileProblemError(f"output {path} is a pipe or a device, expected a file: {beside} is written beside it")
    return place.path


def check_writable(path: Path) -> None:
    """Refuse early an output that could not be written at the end.

    Raises:
        FileProblemError: the folder is missing or not writable, or the path is a folder or a socket.
    """
    place = place_of_output(path)
    if place.streams:
        if place.descriptor is None and not os.access(path, os.W_OK):
            raise FileProblemError(f"cannot write {path}: Permission denied; choose another place")
        return
    folder = place.path.parent
    if not folder.is_dir():
        raise FileProblemError(missing_folder(folder))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # a system's folder, such as /proc, names itself as missing
        why = "it takes no new files" if error.errno == errno.ENOENT else error.strerror
        raise FileProblemError(f"cannot write into {folder}: {why}; {_advice(error)}") from error


def missing_folder(folder: Path) -> str:
    """What a message says of a folder that an output would lie in, and that is none."""
    first = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if first.is_file():
        return f"{first} is a file, expected a folder to write into; choose another place"
    return f"folder {folder} does not exist; create it or choose another place"


def _advice(error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    # without a number a library has hidden what the system said: mostly a full disk
    return "free space or choose another place" if error.errno in (None, *_NO_SPACE) else "choose another place"


def _write_error(path: Path, error: OSError) -> FileProblemError:
    return FileProblemError(f"cannot write {path}: {error.strerror or error}; {_advice(error)}")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes `path` when the block ends well.

    The temporary file lies in the folder of the file that is written: of a link's target where `path` is a link. A
    pipe or a device gets the bytes at the end and stays what it is. On any exception, an interrupt included, the
    temporary file is removed and `path` is left as it was.

    Raises:
        FileProblemError: the file cannot be written (no folder, no permission, disk full, a folder or a socket).
        ReaderGoneError: the name stands for this process's own output, whose reader went away.
    """
    path = Path(path)
    place = place_of_output(path)
    try:
        if place.streams:
            with tempfile.TemporaryDirectory(prefix="dq-") as folder:
                temporary = Path(folder) / "output"
                yield temporary
                _pour(temporary, place)
        else:
            with _replacing(place.path) as temporary:
                yield temporary
    except OSError as error:
        if isinstance(error, BrokenPipeError) and place.descriptor is not None:
            raise ReaderGoneError(f"the reader of {path} went away") from error
        raise _write_error(path, error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in _HIDES_ERRORS:
            raise FileProblemError(f"cannot write {path}: {str(error)[:120]}; {_advice(OSError())}") from error
        raise


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{_shortened(path.name)}.{os.getpid()}-{secrets.token_hex(3)}.part")
    try:
        mode = _mode_of_file(path, temporary)
        if is_utf8(path):
            yield temporary
        else:
            with tempfile.TemporaryDirectory(prefix="dq-") as folder:
                yield Path(folder) / "output"
                shutil.copyfile(Path(folder) / "output", temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
            with contextlib.suppress(PermissionError):  # a file system without permissions
                os.fchmod(stream.fileno(), mode)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _mode_of_file(path: Path, new: Path) -> int:
    """Who may read and write a file: as before where it is there, else what the system gives the new file.

    Libraries would decide it otherwise: safetensors lets nobody but the owner read.
    """
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        new.unlink()  # a block that writes nothing is an error
        return mode


def check_new_folder(path: Path) -> None:
    """Refuse early a folder that could not be written whole: only a new one or an empty one can.

    Raises:
        FileProblemError: a file, a folder that is not empty, or one that cannot be made.
    """
    if path.is_dir():
        if any(path.iterdir()):
            raise FileProblemError(f"output {path} is a folder with files in it, expected a new one; choose another")
    elif path.exists() or path.is_symlink():
        raise FileProblemError(f"output {path} is a file, expected a new folder; choose another name")
    check_writable(_beside(path))


def _beside(path: Path) -> Path:
    """A name in the folder that holds a folder."""
    whole = Path(os.path.abspath(path))
    return whole.with_name(f".{_shortened(whole.name)}.{os.getpid()}-{secrets.token_hex(3)}.part")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well, as `atomic_path` does with files.

    Raises:
        FileProblemError: `path` is there and not empty, another run is writing it, or it cannot be written.
    """
    check_new_folder(path)
    temporary = _beside(path)
    with _held_by_name(Path(os.path.abspath(path)), path):
        try:
            temporary.mkdir()
            try:
                yield temporary
                os.replace(temporary, os.path.abspath(path))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise _write_error(path, error) from error


def _shortened(name: str) -> str:
    """A name that leaves room for more; of a long one its beginning and a hash, for others may begin so too."""
    encoded = os.fsencode(name)
    if len(encoded) <= _NAME_BYTES:
        return name
    return encoded[: _NAME_BYTES - 17].decode("utf-8", "ignore") + f"-{hashlib.sha256(encoded).hexdigest()[:16]}"


def _pour(source: Path, place: OutputPlace) -> None:
    """Write the bytes of a file into a pipe, a device or an open descriptor."""
    if place.descriptor is None:
        target = os.open(place.path, os.O_WRONLY | os.O_NOCTTY)
    else:
        for stream in (sys.stdout, sys.stderr):  # what was printed before comes before
            if stream is not None:
                stream.flush()
        target = os.dup(place.descriptor)
    try:
        with source.open("rb") as stream:
            while block := stream.read(1 << 20):
                view = memoryview(block)
                while view:
                    view = view[os.write(target, view) :]
    finally:
        os.close(target)


@contextlib.contextmanager
def hold_output(path: Path) -> Iterator[None]:
    """Keep other runs from the same output while the block runs, by a lock file beside it; pipes and devices are free.

    A killed run's lock holds nobody up. Where the file system has no locks, nothing is held.

    Raises:
        FileProblemError: another run holds it, or the lock cannot be made.
    """
    place = place_of_output(path)
    if place.streams:
        yield
        return
    with _held_by_name(place.path, path):
        yield


@contextlib.contextmanager
def _held_by_name(place: Path, path: Path) -> Iterator[None]:
    lock = place.with_name(f".{_shortened(place.name)}.lock")
    try:
        descriptor = None
        while descriptor is None:
            descriptor = _locked_file(lock, f"{path} is being written by another run")
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def _locked_file(lock: Path, held: str) -> int | None:
    """The open lock file; None where its holder removed it between opening and locking."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _lock(descriptor, held)
        if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other runs from a folder while the block runs; one that was made for it and stayed empty is removed.

    Raises:
        FileProblemError: another run holds it, or it cannot be made.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FileProblemError(f"cannot use folder {folder}: {error.strerror}; choose another place") from error
    try:
        _lock(descriptor, f"folder {folder} is in use by another run")
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def _lock(descriptor: int, held: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder_of(descriptor)
        who = "" if holder is None else f" (process {holder})"
        raise FileProblemError(f"{held}{who}; wait until it has ended, or choose another name") from error
    except OSError:  # a file system without locks
        return


def _holder_of(descriptor: int) -> int | None:
    """The process that holds the lock of an open file, as the system's table has it; None where it does not say."""
    inode = os.fstat(descriptor).st_ino
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[5].endswith(f":{inode}") and int(words[4]) > 0:
                return int(words[4])
    return None


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text through `atomic_path`; bytes of names that are no UTF-8 are written as escapes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write bytes through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
