"""DilateQuant (arXiv 2409.14307): weight dilation, the temporal parallel quantizer, block-wise distillation."""

from __future__ import annotations

from dq_deploy.methods.finetuning.in_stages import check_finetuning, finetuned_last
from dq_deploy.methods.options import DilateQuantOptions
from dq_deploy.methods.prepare.preparation import prepare
from dq_deploy.methods.run import Run
from dq_deploy.methods.training.reconstruction import bkd_settings
from dq_deploy.methods.training.resume import state_of_run
from dq_deploy.methods.training.trained_record import trained_record
from dq_deploy.record import Record


def quantize_dilatequant(run: Run, options: DilateQuantOptions) -> Record:
    """Dilate, calibrate, then train block by block; see `dq_deploy.methods.quantize`.

    Folds come first, then ranges, then training: what is calibrated is the model that will run. Without part
    `temporal-quantizer` all steps share one activation quantizer. With `channel_scales` factors from ranges take the
    place of the dilation, which comes from the weights alone. With `finetune` QuEST's finetuning follows.
    """
    check_finetuning(run, options)
    dilates = options.uses("weight-dilation") and not options.channel_scales
    bound = options.dilation_bound if dilates else None
    prepared = prepare(run.denoiser, options, dilation_bound=bound)
    settings = bkd_settings(options) if options.uses("distillation") else None
    state = state_of_run(run, options)
    made = trained_record(run, prepared, options, settings, state, channel_scales=options.channel_scales)
    return finetuned_last(run, options, made.calibration, state, made.record)
