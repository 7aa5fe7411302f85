"""EDA-DM's files in Q-Diffusion's layout: one activation set; codes unsigned though ranges are symmetric.

The published code saves nothing. A plain state dict of its model lacks weight scales and zero points, from which no
code can be had: it is refused. Zero points of one width differ by one between channels, so they are never guessed.
"""

from __future__ import annotations

from dq_deploy.errors import FileProblemError
from dq_deploy.readers.foreign import ForeignModel
from dq_deploy.readers.formats.quantizer_tensors import Source
from dq_deploy.readers.formats.wrapped_layers import Layout, read_wrapped, static_table, wrapped_tensors
from dq_deploy.readers.tensors import few


def read(source: Source) -> ForeignModel:
    """The network in a file of EDA-DM whose scales and zero points were saved as parameters.

    Raises:
        FileProblemError: the file is not of this layout, or lacks scales and zero points.
        OptionError: settings that it contradicts.
    """
    _check_complete(source)
    return read_wrapped(source, Layout(one_table=static_table, signed=False), float_reasons={})


def _check_complete(source: Source) -> None:
    tensors = wrapped_tensors(source)
    rounded = [name.removesuffix(".alpha") for name in tensors if name.endswith(".weight_quantizer.alpha")]
    missing = {what: [name for name in rounded if f"{name}.{what}" not in tensors] for what in ("delta", "zero_point")}
    scaled = [name for name in tensors if name.endswith((".act_quantizer.delta", ".act_quantizer_0.delta"))]
    unplaced = [name for name in scaled if f"{name.removesuffix('delta')}zero_point" not in tensors]
    lacks = [
        f"the {words} of {len(names)} {whose} ({few(sorted(names))})"
        for words, whose, names in (
            ("scales", "weights", missing["delta"]),
            ("zero points", "weights", missing["zero_point"]),
            ("zero points", "activations", unplaced),
        )
        if names
    ]
    if lacks:
        raise FileProblemError(
            f"{source.name} lacks {'; '.join(lacks)}: a plain state dict of EDA-DM's model does not hold them; save it "
            "again with delta and zero_point of every quantizer as parameters"
        )
