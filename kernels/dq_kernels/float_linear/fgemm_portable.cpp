// The float product in plain C++ on vectors of 4, which every 64-bit CPU has.
#include "float_linear/fgemm.h"

#define DQ_FGEMM portable
#define W 4

namespace dq {
namespace fgemm {
namespace {

constexpr int kMicroRows = 4;
typedef float V __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));

inline V load(const float* p) {
    V v;
    __builtin_memcpy(&v, p, 16);
    return v;
}
inline void store(float* p, V v) { __builtin_memcpy(p, &v, 16); }
inline V set1(float x) { return V{x, x, x, x}; }
inline V fma(V a, V b, V c) { return a * b + c; }
inline V mul(V a, V b) { return a * b; }
inline V add(V a, V b) { return a + b; }
inline V sub(V a, V b) { return a - b; }
inline V max(V a, V b) { return a > b ? a : b; }
inline V min(V a, V b) { return a < b ? a : b; }
inline V pow2(V shifted) {  // the exponent sits in the low bits of shifted; the least becomes 0
    const Bits biased = reinterpret_cast<Bits>(shifted) - 0x4b400000u + 127u;
    return reinterpret_cast<V>(biased << 23);
}
inline float sum_of(V v) { return (v[0] + v[1]) + (v[2] + v[3]); }
inline float max_of(V v) {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

}  // namespace
}  // namespace fgemm
}  // namespace dq

#include "float_linear/fgemm.inc"
#include "attention/pairs.inc"
#include "attention/quads.inc"
