"""`python -m dq_kernels.gpu.compile`, the name that `dq_kernels.gpu.ahead_of_time.compile` had before."""

from __future__ import annotations

from dq_kernels.gpu.ahead_of_time.compile import main

if __name__ == "__main__":
    raise SystemExit(main())
