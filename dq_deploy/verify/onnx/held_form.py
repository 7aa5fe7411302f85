"""How an exported graph holds a layer part, from its manifest."""

from __future__ import annotations

from dq_deploy.manifest.values import ManifestPart
from dq_deploy.verify.layers.compare import HeldForm


def held_form(entry: ManifestPart) -> HeldForm:
    """The form of one part.

    Args:
        entry: the part's manifest entry.
    """
    return HeldForm(
        offset=entry.offset,
        shift=entry.offset_shift or 0,
        codes_padding=entry.codes_padding or (),
        layout=entry.layout or "nchw",
        holds=entry.accumulator_holds or "canonical",
    )
