"""Hardware kernels of the integer layer come in a later version; this version ships none.

Everything runs on the engines' own integer operators; see `dq_deploy.targets`.
"""

OPS: tuple[str, ...] = ()
