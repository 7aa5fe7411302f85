"""KServe V2, also called the Open Inference Protocol, over HTTP: the bare denoiser, and pictures as tensors."""
