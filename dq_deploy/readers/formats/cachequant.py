"""CacheQuant's files: Q-Diffusion's layout with one activation set a sampling step, trained zero points.

Tables are indexed by the sampler's loop counter, 0 the noisiest. The source runs the inner layers on some steps only
and keeps their feature between; the record runs the whole network on each step.
"""

from __future__ import annotations

from dq_deploy.readers.foreign import ForeignModel
from dq_deploy.readers.formats.quantizer_tensors import Source
from dq_deploy.readers.formats.wrapped_layers import Layout, read_wrapped, step_table


def read(source: Source) -> ForeignModel:
    """The network in a file of CacheQuant, or of a method that writes the same.

    Raises:
        FileProblemError: the file is not of this layout.
        OptionError: settings that it contradicts.
    """
    layout = Layout(one_table=step_table, floor_zero_point=True, every_alpha=False, float_weights=False)
    return read_wrapped(source, layout, float_reasons={})
