// The float product with AVX-512.
#include "float_linear/fgemm.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")
#endif
#define DQ_VNNI 1
#define DQ_FGEMM avx512
#include "float_linear/zmm.inc"
#include "float_linear/fgemm.inc"
#include "attention/pairs.inc"
#include "attention/quads.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
