"""What the Triton kernels share: device blocks, calls, configurations, ahead-of-time compilation and launching.

No kernel of this package has run on a GPU so far: they are proven by Triton's interpreter, bit for bit against
`reference.py`, and by compiling them for every architecture in `ARCHITECTURES` and reading the machine code.

What Triton 3.7.1 makes of them (all shapes of Stable Diffusion 1.5, 302 kernels, no spills, no local memory):

- sm_80, 86, 89, 120: IMMA.16832.S8.S8.SAT, operands by LDSM. The sums saturate, so a layer may have at most 2^17 - 1
  products in a sum, for which they cannot. Main loop of a 128 x 128 tile on sm_80, 128 channels a step: 218
  instructions for 64 IMMA with int8 weights, 228 with int4.
- sm_90a: IGMMA.64x128x32.S8.S8 asynchronously, unpacked int4 weights as the register operand; 156 and 151 instructions
  for 4 IGMMA. Tiles of 16 output channels fall back to IMMA.
- sm_100a: IMMA too; this Triton does not use the tensor memory of Blackwell for integers.
"""

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities the kernels are compiled for; below 8.0 there is no int8 product in Triton."""
