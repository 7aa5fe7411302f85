"""Quantizes a tiny model into a folder of states and prints the record's hash: a program to be killed."""

from __future__ import annotations

import sys
from typing import Any

import torch

from dq_deploy.methods import quantize
from dq_deploy.record import content_sha256
from tests.tiny import tiny_denoiser

RESUMABLE: dict[str, Any] = {"steps": 4, "samples": 4, "iterations": 8, "batch": 4}

if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(content_sha256(quantize(tiny_denoiser(), **RESUMABLE, resume_dir=sys.argv[1])))
