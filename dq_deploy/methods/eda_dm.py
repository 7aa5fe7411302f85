"""EDA-DM (arXiv 2401.04585): calibration samples by distribution alignment, then fine-grained block reconstruction."""

from __future__ import annotations

from dq_deploy.methods.finetuning.in_stages import check_finetuning, finetuned_last
from dq_deploy.methods.options import EdaDmOptions
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.methods.run import Run
from dq_deploy.methods.training.reconstruction import fbr_settings
from dq_deploy.methods.training.resume import state_of_run
from dq_deploy.methods.training.trained_record import trained_record
from dq_deploy.record import Record


def quantize_eda_dm(run: Run, options: EdaDmOptions) -> Record:
    """Calibrate on the steps that stand for all, then reconstruct; see `dq_deploy.methods.quantize`.

    1. TDAC: the calibration inputs come from steps by the density and diversity of their features, which is what
       `calibration_choice` is by default here.
    2. Activation quantizers are static, one for all steps, found by search; skip concatenations are split.
    3. FBR: AdaRound and the activation scales are trained a block at a time, on the error of the block's output and
       of the layers inside, with half of the activation quantization dropped.
    4. QuEST's finetuning, where `finetune` asks for it.
    """
    check_finetuning(run, options)
    prepared = prepare(run.denoiser, options)
    settings = fbr_settings(options) if options.uses("reconstruction") else None
    state = state_of_run(run, options)
    made = trained_record(run, prepared, options, settings, state)
    return finetuned_last(run, options, made.calibration, state, made.record)
