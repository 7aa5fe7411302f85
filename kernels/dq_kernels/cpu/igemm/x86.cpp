// The kernels of the integer product for AVX2, AVX-VNNI and AVX512-VNNI, in one object without -m flags: each
// namespace is compiled for its own instruction set, and called only where the CPU has it.
#include "igemm/igemm.h"
#include "simd/simd.h"

#if DQ_X86

DQ_AVX2_BEGIN
namespace dq {
namespace avx2 {
namespace {
// clang-format off
#include "igemm/ymm.inc"
#include "igemm/avx2.inc"
#include "igemm/finish.inc"
#include "igemm/finish_vector.inc"
#include "igemm/unpack.inc"
// clang-format on
const MultiplyRows kMultiply[] = {nullptr,          multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                  multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
const MultiplyRows kMultiplyWide[] = {nullptr,
                                      multiply_rows_wide<1>,
                                      multiply_rows_wide<2>,
                                      multiply_rows_wide<3>,
                                      multiply_rows_wide<4>,
                                      multiply_rows_wide<5>,
                                      multiply_rows_wide<6>};
const Kernels kKernels = {kRows, kColumns, 1, kMultiply, nullptr, kMultiplyWide, unpack, widen, finish};
}  // namespace
}  // namespace avx2
}  // namespace dq
DQ_ISA_END

DQ_AVX_VNNI_BEGIN
namespace dq {
namespace avx_vnni {
namespace {
// clang-format off
#include "igemm/ymm.inc"
DQ_INLINE Vector dot(Vector sum, Vector codes, Vector w) { return _mm256_dpbusd_avx_epi32(sum, codes, w); }
DQ_INLINE Vector add_ints(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
#include "igemm/finish.inc"
#include "igemm/finish_vector.inc"
#include "igemm/unpack.inc"
#include "igemm/vnni.inc"
// clang-format on
template <bool kInt4Weights>
struct Table {
    static constexpr MultiplyRows rows[] = {nullptr,
                                            multiply_rows<1, kInt4Weights>,
                                            multiply_rows<2, kInt4Weights>,
                                            multiply_rows<3, kInt4Weights>,
                                            multiply_rows<4, kInt4Weights>,
                                            multiply_rows<5, kInt4Weights>,
                                            multiply_rows<6, kInt4Weights>};
};
const Kernels kKernels = {kRows, kColumns, 1, Table<false>::rows, Table<true>::rows, nullptr, unpack, nullptr, finish};
}  // namespace
}  // namespace avx_vnni
}  // namespace dq
DQ_ISA_END

DQ_AVX512_VNNI_BEGIN
namespace dq {
namespace avx512_vnni {
namespace {
// clang-format off
#include "igemm/zmm.inc"
DQ_INLINE Vector dot(Vector sum, Vector codes, Vector w) { return _mm512_dpbusd_epi32(sum, codes, w); }
DQ_INLINE Vector add_ints(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
#include "igemm/finish.inc"
#include "igemm/finish_vector.inc"
#include "igemm/unpack.inc"
#include "igemm/vnni.inc"
// clang-format on
template <bool kInt4Weights>
struct Table {
    static constexpr MultiplyRows rows[] = {nullptr,
                                            multiply_rows<1, kInt4Weights>,
                                            multiply_rows<2, kInt4Weights>,
                                            multiply_rows<3, kInt4Weights>,
                                            multiply_rows<4, kInt4Weights>,
                                            multiply_rows<5, kInt4Weights>,
                                            multiply_rows<6, kInt4Weights>,
                                            multiply_rows<7, kInt4Weights>,
                                            multiply_rows<8, kInt4Weights>};
};
const Kernels kKernels = {kRows, kColumns, 1, Table<false>::rows, Table<true>::rows, nullptr, unpack, nullptr, finish};
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
