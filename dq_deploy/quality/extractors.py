"""Feature extractors and classifiers by what the user writes: a name, or a kind and a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.errors import OptionError
from dq_deploy.quality.features import FeatureExtractor

if TYPE_CHECKING:
    from dq_deploy.quality.onnx_network import Labels

EXTRACTORS = ("efficientnet-lite0", "inception:PATH", "onnx:PATH", "digits:PATH")
CLASSIFIERS = ("digits:PATH", "onnx:PATH")


def _parts(spec: str, known: tuple[str, ...], what: str) -> tuple[str, Path]:
    kind, _, path = spec.partition(":")
    shapes = {entry.partition(":")[0]: ":" in entry for entry in known}
    if kind not in shapes or shapes[kind] != bool(path):
        raise OptionError(f"{what} is {spec!r}, expected one of {', '.join(known)}")
    return kind, Path(path)


def load_extractor(spec: str = EXTRACTORS[0]) -> FeatureExtractor:
    """The extractor of a specification, one of EXTRACTORS with a file's path for PATH.

    Raises:
        OptionError: no such kind, or a missing or superfluous path.
        MissingDependencyError: its package is not installed.
        FileProblemError: its file is missing, broken, or another network.
    """
    kind, path = _parts(spec, EXTRACTORS, "the feature extractor")
    if kind == "inception":
        from dq_deploy.quality.inception import load_inception

        return load_inception(path)
    if kind == "onnx":
        from dq_deploy.quality.onnx_network import load_onnx_extractor

        return load_onnx_extractor(path)
    if kind == "digits":
        from dq_deploy.quality.classifier import load_digit_extractor

        return load_digit_extractor(path)
    from dq_deploy.quality.efficientnet import load_efficientnet_lite0

    return load_efficientnet_lite0()


def load_classifier(spec: str) -> Labels:
    """The function from images to labels of a specification, one of CLASSIFIERS with a file's path for PATH.

    Raises:
        OptionError: no such kind, or no path.
        FileProblemError: its file is missing, broken, or another network.
    """
    kind, path = _parts(spec, CLASSIFIERS, "the classifier")
    if kind == "onnx":
        from dq_deploy.quality.onnx_network import load_onnx_classifier

        return load_onnx_classifier(path)
    from functools import partial

    from dq_deploy.quality.classifier import load_digit_classifier, recognised_labels

    return partial(recognised_labels, load_digit_classifier(path))
