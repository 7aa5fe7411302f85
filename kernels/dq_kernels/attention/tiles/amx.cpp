// The kernels of pairs.h and quads.h with AMX: their products by matrix tiles, the rest by AVX-512 and its bfloat16.
#include "float_linear/fgemm.h"
#include "simd/simd.h"

#if DQ_HAS_ATTENTION_TILES
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512dq,avx512bf16,amx-tile,amx-int8,amx-bf16,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx512dq,avx512bf16,amx-tile,amx-int8,amx-bf16,avx2,fma")
#endif
#define DQ_FGEMM amx
#define DQ_BF16 1
#define DQ_VNNI 1
#define DQ_TILES 1
// clang-format off
#include "float_linear/zmm.inc"
#include "float_linear/fgemm.inc"
#include "igemm/tiles/instructions.inc"
#include "attention/tiles/product.inc"
#include "attention/pairs.inc"
#include "attention/quads.inc"
// clang-format on

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
