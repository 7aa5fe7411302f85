// The float product with AVX2 and FMA: 6 rows by 16 columns in 12 registers.
#include "float_linear/fgemm.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

#define DQ_FGEMM avx2
#define W 8
#define DQ_MADD 1

namespace dq {
namespace fgemm {
namespace {

constexpr int kMicroRows = 6;
typedef __m256 V;

inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V set1(float x) { return _mm256_set1_ps(x); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V min(V a, V b) { return _mm256_min_ps(a, b); }
inline V pow2(V shifted) {  // the exponent sits in the low bits of shifted; the least becomes 0
    const __m256i biased = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127 - 0x4b400000));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline float sum_of(V v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float max_of(V v) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace
}  // namespace fgemm
}  // namespace dq

#include "float_linear/fgemm.inc"
#include "attention/pairs.inc"

namespace dq {
namespace quads {
namespace {

// Of two 16-bit integers in each word: the sum of both products.
inline pairs::Signs madd(pairs::Words a, pairs::Words b) {
    return reinterpret_cast<pairs::Signs>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
// The high byte of each 16 bits, with its sign.
inline pairs::Words high_bytes(pairs::Words b) {
    return reinterpret_cast<pairs::Words>(_mm256_srai_epi16(reinterpret_cast<__m256i>(b), 8));
}

// The low byte of each word.
inline void store_bytes(uint8_t* to, pairs::Signs codes) {
    const __m256i bytes = _mm256_and_si256(reinterpret_cast<__m256i>(codes), _mm256_set1_epi32(0xff));
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    const __m128i packed = _mm_packus_epi16(halves, halves);
    __builtin_memcpy(to, &packed, 8);
}

}  // namespace
}  // namespace quads
}  // namespace dq

#include "attention/quads.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
