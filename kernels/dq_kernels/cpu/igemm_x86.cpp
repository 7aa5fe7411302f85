// The kernels of the integer product for AVX2, AVX-VNNI and AVX512-VNNI, in one object without -m flags: each
// namespace is compiled for its own instruction set, and called only where the CPU has it.
#include "igemm.h"
#include "simd.h"

#if DQ_X86

DQ_AVX2_BEGIN
namespace dq {
namespace avx2 {
namespace {
#include "igemm_avx2.inc"
#include "igemm_finish.inc"
#include "igemm_unpack.inc"
void (*const kMultiply[])(const Multiply&) = {nullptr,          multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                              multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
void (*const kMultiplyWide[])(const Multiply&) = {nullptr,
                                                  multiply_rows_wide<1>,
                                                  multiply_rows_wide<2>,
                                                  multiply_rows_wide<3>,
                                                  multiply_rows_wide<4>,
                                                  multiply_rows_wide<5>,
                                                  multiply_rows_wide<6>};
const Kernels kKernels = {kRows, kColumns, kMultiply, kMultiplyWide, unpack, widen, finish};
}  // namespace
}  // namespace avx2
}  // namespace dq
DQ_ISA_END

DQ_AVX_VNNI_BEGIN
namespace dq {
namespace avx_vnni {
namespace {
using Vector = __m256i;
constexpr int kRows = 6;
constexpr int kColumns = 16;
DQ_INLINE Vector load(const void* p) {
    return _mm256_loadu_si256(static_cast<const Vector*>(p));
}
DQ_INLINE void store(void* p, Vector v) {
    _mm256_storeu_si256(static_cast<Vector*>(p), v);
}
DQ_INLINE Vector zero() { return _mm256_setzero_si256(); }
DQ_INLINE Vector repeat(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
DQ_INLINE Vector dot(Vector sum, Vector codes, Vector w) {
    return _mm256_dpbusd_avx_epi32(sum, codes, w);
}
#include "igemm_finish.inc"
#include "igemm_unpack.inc"
#include "igemm_vnni.inc"
void (*const kMultiply[])(const Multiply&) = {nullptr,          multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                              multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
const Kernels kKernels = {kRows, kColumns, kMultiply, nullptr, unpack, nullptr, finish};
}  // namespace
}  // namespace avx_vnni
}  // namespace dq
DQ_ISA_END

DQ_AVX512_VNNI_BEGIN
namespace dq {
namespace avx512_vnni {
namespace {
using Vector = __m512i;
constexpr int kRows = 8;
constexpr int kColumns = 32;
DQ_INLINE Vector load(const void* p) { return _mm512_loadu_si512(p); }
DQ_INLINE void store(void* p, Vector v) { _mm512_storeu_si512(p, v); }
DQ_INLINE Vector zero() { return _mm512_setzero_si512(); }
DQ_INLINE Vector repeat(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
DQ_INLINE Vector dot(Vector sum, Vector codes, Vector w) {
    return _mm512_dpbusd_epi32(sum, codes, w);
}
void unpack(const uint8_t* packed, void* panel, int64_t groups) {
    int8_t* to = static_cast<int8_t*>(panel);
    const Vector low = _mm512_set1_epi8(15);
    const Vector signs = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1));
    for (int64_t g = 0; g < groups; g++) {
        const Vector both = load(packed + g * 64);
        store(to + g * 128, _mm512_shuffle_epi8(signs, _mm512_and_si512(both, low)));
        store(to + g * 128 + 64, _mm512_shuffle_epi8(signs, _mm512_and_si512(_mm512_srli_epi16(both, 4), low)));
    }
}
#include "igemm_finish.inc"
#include "igemm_vnni.inc"
void (*const kMultiply[])(const Multiply&) = {nullptr,          multiply_rows<1>, multiply_rows<2>,
                                              multiply_rows<3>, multiply_rows<4>, multiply_rows<5>,
                                              multiply_rows<6>, multiply_rows<7>, multiply_rows<8>};
const Kernels kKernels = {kRows, kColumns, kMultiply, nullptr, unpack, nullptr, finish};
}  // namespace
}  // namespace avx512_vnni
}  // namespace dq
DQ_ISA_END

namespace dq {
const Kernels& avx2_kernels() { return avx2::kKernels; }
const Kernels& avx_vnni_kernels() { return avx_vnni::kKernels; }
const Kernels& avx512_vnni_kernels() { return avx512_vnni::kKernels; }
}  // namespace dq

#else
namespace dq {
const Kernels& avx2_kernels() { return portable_kernels(); }
const Kernels& avx_vnni_kernels() { return portable_kernels(); }
const Kernels& avx512_vnni_kernels() { return portable_kernels(); }
}  // namespace dq
#endif
