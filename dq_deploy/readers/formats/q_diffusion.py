"""Q-Diffusion's files: one activation set for all steps, learned rounding, split shortcuts."""

from __future__ import annotations

from dq_deploy.readers.foreign import ForeignModel
from dq_deploy.readers.formats.quantizer_tensors import Source
from dq_deploy.readers.formats.wrapped_layers import Layout, read_wrapped, static_table


def read(source: Source) -> ForeignModel:
    """The network in a file of Q-Diffusion.

    Raises:
        FileProblemError: the file is not of this layout.
        OptionError: settings that it contradicts.
    """
    return read_wrapped(source, Layout(one_table=static_table), float_reasons={})
