// The kernels of the integer product in plain C++, for any CPU.
#include "igemm.h"
#include "simd.h"

namespace dq {
namespace {

constexpr int kRows = 4;
constexpr int kColumns = 8;

#include "igemm_finish.inc"

template <int kTile>
void multiply_rows(const Multiply& m) {
    uint32_t sum[kTile][kColumns];  // unsigned: modulo 2^32 without undefined overflow
    for (int r = 0; r < kTile; r++) {
        for (int n = 0; n < kColumns; n++) sum[r][n] = m.first ? 0 : static_cast<uint32_t>(m.sums[r * kColumns + n]);
    }
    const int8_t* w = static_cast<const int8_t*>(m.weights);
    for (int64_t p = 0; p < m.positions; p++) {
        for (int64_t g = 0; g < m.groups; g++, w += 4 * kColumns) {
            for (int r = 0; r < kTile; r++) {
                const uint8_t* a = m.rows[p * kTile + r] + 4 * g;
                for (int n = 0; n < kColumns; n++) {
                    const int8_t* four = w + 4 * n;
                    sum[r][n] += static_cast<uint32_t>(a[0] * four[0] + a[1] * four[1] + a[2] * four[2] + a[3] * four[3]);
                }
            }
        }
    }
    for (int r = 0; r < kTile; r++) {
        for (int n = 0; n < kColumns; n++) m.sums[r * kColumns + n] = static_cast<int32_t>(sum[r][n]);
    }
}

void unpack(const uint8_t* packed, void* panel, int64_t groups) {
    int8_t* to = static_cast<int8_t*>(panel);
    constexpr int kHalf = kColumns * 2;  // bytes of half a group
    for (int64_t g = 0; g < groups; g++) {
        for (int i = 0; i < kHalf; i++) {
            const int byte = packed[g * kHalf + i];
            to[g * 2 * kHalf + i] = static_cast<int8_t>(((byte & 15) ^ 8) - 8);
            to[g * 2 * kHalf + kHalf + i] = static_cast<int8_t>(((byte >> 4) ^ 8) - 8);
        }
    }
}

const MultiplyRows kMultiply[] = {nullptr, multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>};
const Kernels kKernels = {kRows, kColumns, kMultiply, nullptr, nullptr, unpack, nullptr, finish_plain};

}  // namespace

const Kernels& portable_kernels() { return kKernels; }

const Kernels& kernels_of(int32_t isa) {
    switch (isa) {
        case DQ_AVX2:
            return avx2_kernels();
        case DQ_AVX_VNNI:
            return avx_vnni_kernels();
        case DQ_AVX512_VNNI:
            return avx512_vnni_kernels();
        default:
            return portable_kernels();
    }
}

}  // namespace dq
