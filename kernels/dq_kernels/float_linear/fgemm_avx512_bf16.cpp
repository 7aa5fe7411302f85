// The products of attention with the bfloat16 instructions of AVX-512; the rest as in fgemm_avx512.cpp.
#include "float_linear/fgemm.h"
#include "simd/simd.h"

#if defined(__x86_64__) && DQ_HAS_BF16
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
#endif
#define DQ_FGEMM avx512_bf16
#define DQ_BF16 1
#include "float_linear/zmm.inc"
#include "float_linear/fgemm.inc"
#include "attention/pairs.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
