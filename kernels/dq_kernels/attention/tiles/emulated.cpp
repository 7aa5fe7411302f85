// The source of amx.cpp with plain C++ in place of every instruction: for tests, on any CPU.
#include "float_linear/fgemm.h"
#include "simd/simd.h"

#define DQ_FGEMM amx_emulated
#define W 16
#define DQ_TILES 1

// clang-format off
#include "simd/plain_floats.inc"
#include "float_linear/fgemm.inc"
#include "igemm/tiles/emulated.inc"
#include "attention/tiles/product.inc"
#include "attention/pairs.inc"
#include "attention/quads.inc"
// clang-format on
