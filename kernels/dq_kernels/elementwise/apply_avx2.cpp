// The kinds for CPUs with AVX2.
#include "elementwise/apply.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define DQ_APPLY apply_avx2
#include "elementwise/apply.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
