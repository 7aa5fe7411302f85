"""A record with its program and its packed weights as the header and blocks of a program file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dq_kernels.cpu.library import KernelInputError, KernelsMissingError, known_isas, pack_weights
from dq_kernels.cpu.stored import check_stored, columns_of, layout_sha256, unpacked
from dq_kernels.cpu.structs import EMULATED, ISAS
from numpy.typing import NDArray

from dq_deploy.artifacts import checked_name
from dq_deploy.errors import DqError, FileProblemError, MissingDependencyError, OptionError, RecordError, words_of
from dq_deploy.native.check.program import check_joined_program
from dq_deploy.native.check.surroundings import surroundings_of
from dq_deploy.native.file import SUFFIX
from dq_deploy.native.file.layout import MappedFile, write_file
from dq_deploy.native.file.program_file import PartPlace, ProgramFile
from dq_deploy.native.program import program as programs
from dq_deploy.native.program.layer_constants import kernel_weights, padded_parts, refusal
from dq_deploy.native.trace.traced import traced_program
from dq_deploy.record import Record, check_can_run, content_sha256
from dq_deploy.record.files.arrays import (
    arrays_from_record,
    header_text,
    parse_header,
    part_key,
    record_from_arrays,
    with_known_sha256,
)
from dq_deploy.record.stored_codes import StoredCodes
from dq_deploy.version import __version__

FORMAT, VERSION = "dq_deploy.program", 1
_KEYS = {"format", "version", "dq_deploy", "isa", "packing", "record_sha256", "record", "program", "codes", "turned"}
_CODE_KEYS = {"shape", "code_span", "q_weight_span"}
_PACKED = "packed/"


def write_program_file(record: Record, path: str | Path, *, isa: str | None = None) -> str:
    """Trace a record's denoiser, pack its weights and write both with the record; needs torch.

    The same record, instruction set and version of this package give the same bytes.

    Args:
        record: the quantized denoiser.
        path: to write.
        isa: instruction set to pack for, whether this CPU has it or not; None takes the best that it has.

    Returns:
        The instruction set.

    Raises:
        OptionError: an unknown instruction set.
        MissingDependencyError: the CPU kernels were not built.
        ModelError: torch cannot trace it, or it holds an operation the native engine does not know.
        FileProblemError: the file cannot be written.
    """
    check_can_run(record)
    path = checked_name(Path(path), SUFFIX)
    isa = _checked_isa(isa)
    joined = programs.loads(programs.dumps(traced_program(record)))
    text, arrays = arrays_from_record(record)
    blocks, codes = dict(arrays), {}
    for (name, index), padded in padded_parts(programs.from_json(programs.at_batch(joined, 1)), record.layers).items():
        layer = record.layers[name]
        if refusal(layer, index, padded=padded):
            continue
        weights, zero = kernel_weights(layer, index)
        packed = pack_weights(isa, np.ascontiguousarray(weights), layer.reach, zero)
        part, key = layer.parts[index], part_key(name, index, "w_code")
        blocks[_PACKED + key] = packed
        del blocks[key]
        codes[key] = {
            "shape": [int(n) for n in part.w_shape],
            "code_span": list(part.code_span),
            "q_weight_span": list(part.q_weight_span),
        }
    turned = [key for key, array in blocks.items() if key.startswith("float/") and _is_turned(array)]
    for key in turned:
        blocks[key] = blocks[key].transpose(0, 2, 3, 1)
    header = {
        **{"format": FORMAT, "version": VERSION, "dq_deploy": __version__},
        **{"isa": isa, "packing": layout_sha256(isa), "codes": codes, "turned": sorted(turned)},
        **{"record_sha256": content_sha256(record), "record": parse_header(text), "program": joined},
    }
    write_file(Path(path), header, blocks)
    return isa


def _checked_isa(isa: str | None) -> str:
    try:
        known = known_isas()
    except KernelsMissingError as error:
        raise MissingDependencyError(str(error)) from error
    offered = [name for name in ISAS if name != EMULATED]
    if isa is not None and isa not in offered:
        raise OptionError(f"instruction set is {isa!r}, expected one of {', '.join(offered)}")
    return known[-1] if isa is None else isa


def _is_turned(array: NDArray[Any]) -> bool:
    """Whether the kernels read a parameter in another order than the record's: channels last."""
    return array.dtype == np.float32 and array.ndim == 4


def program_of(mapped: MappedFile) -> ProgramFile:
    """What a mapped file holds, checked whole.

    Raises:
        FileProblemError: it is of another version, or holds a program that leaves its memory.
        MissingDependencyError: the CPU kernels were not built.
    """
    path = mapped.path
    try:
        return _opened(path, mapped)
    except KernelsMissingError as error:
        raise MissingDependencyError(str(error)) from error
    except (FileProblemError, RecordError, KernelInputError) as error:
        raise FileProblemError(f"{path}: {error}; export the record again") from error
    except (DqError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise FileProblemError(f"{path} is damaged: {words_of(error)}; export the record again") from error


def _opened(path: Path, mapped: MappedFile) -> ProgramFile:
    header = mapped.header
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise FileProblemError(f"it is {header.get('format')} {header.get('version')}, expected {FORMAT} {VERSION}")
    if header.get("dq_deploy") != __version__:
        raise FileProblemError(f"dq_deploy {header.get('dq_deploy')} wrote it, this is {__version__}")
    if header.keys() != _KEYS or header["isa"] not in ISAS:
        raise FileProblemError("its header has other keys than a program file has, or an unknown instruction set")
    isa: str = header["isa"]
    if header["packing"] != layout_sha256(isa):
        raise FileProblemError(f"its weights are packed for {isa} in another way than these kernels read")
    arrays = {name: array for name, array in mapped.blocks.items() if not name.startswith(_PACKED)}
    for name in header["turned"]:
        if arrays[name].ndim != 4:
            raise FileProblemError(f"block {name} has {arrays[name].ndim} axes, expected 4")
        arrays[name] = arrays[name].transpose(0, 3, 1, 2)
    held = {name.removeprefix(_PACKED): a for name, a in mapped.blocks.items() if name.startswith(_PACKED)}
    if held.keys() != header["codes"].keys():
        raise FileProblemError("its packed weights are not those that its header lists")
    _check_packed(header, held, isa)
    stored = {key: _stored_codes(key, entry, held[key], arrays) for key, entry in header["codes"].items()}
    record = record_from_arrays(header_text(header["record"]), arrays, stored)
    check_can_run(record)
    digest = header["record_sha256"]
    if not isinstance(digest, str) or len(digest) != 64:
        raise FileProblemError(f"its record has the hash {digest!r}")
    joined = header["program"]
    check_joined_program(joined, lambda batch: surroundings_of(record, joined["constants"])(batch))
    packed = {place: held[key] for key, place in _places(record).items() if key in held}
    return ProgramFile(
        path=path,
        record=with_known_sha256(record, digest),
        joined=joined,
        isa=isa,
        packed=packed,
        nbytes=path.stat().st_size,
    )


def _places(record: Record) -> dict[str, PartPlace]:
    """Layer and part by the name of the codes' array."""
    return {
        part_key(name, index, "w_code"): (name, index)
        for name, layer in record.layers.items()
        for index in range(len(layer.parts))
    }


def _check_packed(header: Mapping[str, Any], held: Mapping[str, NDArray[Any]], isa: str) -> None:
    """Packed weights are of the layers that the header has, in the form this library packs them."""
    columns = columns_of(isa)
    spans = {
        part_key(entry["name"], index, "w_code"): entry["q_max"] - entry["q_min"]
        for entry in header["record"]["layers"]
        for index in range(len(entry["w_shapes"]))
    }
    for key, packed in held.items():
        entry = header["codes"][key]
        if not isinstance(entry, dict) or entry.keys() != _CODE_KEYS:
            raise FileProblemError(f"codes of {key} are {str(entry)[:80]}, expected {', '.join(sorted(_CODE_KEYS))}")
        sets, out_channels, channels, *kernel = entry["shape"]
        if sets != 1 or len(kernel) not in (0, 2) or min(entry["shape"]) < 1:
            raise FileProblemError(f"packed weights of {key} have the shape {entry['shape']}, expected one set")
        layer = (out_channels, kernel[0] * kernel[1] if kernel else 1, channels)
        zeros = not _fits_int8(entry)
        try:
            check_stored(packed, isa=isa, columns=columns, layer=layer, span=spans[key], zeros=zeros)
        except KernelInputError as error:
            raise FileProblemError(f"{key}: {error}") from error


def _fits_int8(entry: Mapping[str, Any]) -> bool:
    low, high = entry["q_weight_span"]
    return bool(low >= -128 and high <= 127)


def _stored_codes(
    key: str, entry: Mapping[str, Any], packed: NDArray[np.uint8], arrays: Mapping[str, NDArray[Any]]
) -> StoredCodes:
    for name, most in (("code_span", 1 << 7), ("q_weight_span", 1 << 31)):
        low, high = entry[name]
        if type(low) is not int or type(high) is not int or not -most <= low <= high < most:
            raise FileProblemError(f"{name} of {key} is {entry[name]}, expected least and greatest")
    zero = None if not _fits_int8(entry) else arrays[key.removesuffix("w_code") + "w_zero_point"]
    shape = tuple(entry["shape"])
    return StoredCodes(
        shape=shape,
        code_span=tuple(entry["code_span"]),
        q_weight_span=tuple(entry["q_weight_span"]),
        read=partial(_codes_of, packed, shape, zero),
    )


def _codes_of(packed: NDArray[np.uint8], shape: tuple[int, ...], zero: NDArray[Any] | None) -> NDArray[np.int8]:
    """The record's codes [1, C_out, C_in, ...] in packed weights, which are w_q, or codes where that is no int8."""
    weights = unpacked(packed)
    if zero is not None and zero.any():
        weights = (weights.astype(np.int32) + zero[0][:, None, None]).astype(np.int8)
    if len(shape) == 3:
        return weights[:, 0, :][None]
    _, out_channels, channels, height, width = shape
    image = weights.reshape(out_channels, height, width, channels).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(image)[None]
