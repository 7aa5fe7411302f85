"""What the Triton kernels share: device blocks, calls, configurations, ahead-of-time compilation and launching.

No kernel of this package has run on a GPU so far: they are proven by Triton's interpreter, bit for bit against
`reference.py`, and by compiling them for every architecture in `ARCHITECTURES` and reading the machine code.
"""

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities the kernels are compiled for; below 8.0 there is no int8 product in Triton."""
