// The kinds for CPUs with AVX-512.
#include "elementwise/apply.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define DQ_APPLY apply_avx512
#include "elementwise/apply.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
