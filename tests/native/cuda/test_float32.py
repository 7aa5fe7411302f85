"""Float32 products of the GPU engine are not TF32's, and what the program had set comes back."""

from __future__ import annotations

import threading

import pytest
import torch

from dq_deploy.native.cuda.executor import Prepared
from dq_deploy.native.cuda.float32 import without_tf32


def switches():
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        return (torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision)
    return (torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32)


def exact(values):
    return set(values) <= {"ieee", False}


def test_operations_run_without_tf32():
    """cuDNN's own default is TF32."""
    before, seen = switches(), []
    Prepared(None, [lambda: seen.append(switches())], None, None).play()
    assert not exact(before)
    assert exact(seen[0])
    assert switches() == before


def test_the_last_of_several_threads_sets_it_back():
    before, seen = switches(), []

    def other():
        with without_tf32():
            pass
        seen.append(switches())

    with without_tf32():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert exact(seen[0])
    assert switches() == before


def test_an_error_sets_it_back():
    before = switches()
    with pytest.raises(KeyError), without_tf32():
        raise KeyError
    assert switches() == before
