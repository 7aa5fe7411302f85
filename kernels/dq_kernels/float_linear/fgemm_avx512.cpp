// The float product with AVX-512: 12 rows by 32 columns in 24 registers.
#include "float_linear/fgemm.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx2,fma")
#endif
#include <immintrin.h>

#define DQ_FGEMM avx512
#define W 16

namespace dq {
namespace fgemm {
namespace {

constexpr int kMicroRows = 12;
typedef __m512 V;

inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V pow2(V shifted) {  // the exponent sits in the low bits of shifted; the least becomes 0
    const __m512i biased = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127 - 0x4b400000));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
inline float sum_of(V v) { return _mm512_reduce_add_ps(v); }
inline float max_of(V v) { return _mm512_reduce_max_ps(v); }

}  // namespace
}  // namespace fgemm
}  // namespace dq

#include "float_linear/fgemm.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
