// The kernels of the integer product in plain C++, for any CPU.
#include "igemm/tiles/tiles.h"
#include "simd/simd.h"

namespace dq {
namespace {

constexpr int kRows = 4;
constexpr int kColumns = 8;

#include "igemm/finish.inc"

// Weights as int16 [group][4][column]: compilers turn the loop over columns into widening multiplications.
template <int kTile>
void multiply_rows(const Multiply& m) {
    uint32_t sum[kTile][kColumns];  // unsigned: modulo 2^32 without undefined overflow
    for (int r = 0; r < kTile; r++) {
        for (int n = 0; n < kColumns; n++) sum[r][n] = m.first ? 0 : static_cast<uint32_t>(m.sums[r * kColumns + n]);
    }
    const int16_t* w = static_cast<const int16_t*>(m.weights);
    for (int64_t p = 0; p < m.positions; p++) {
        const uint8_t* a[kTile];
        for (int r = 0; r < kTile; r++) a[r] = m.rows[p * kTile + r];
        for (int64_t k = 0; k < m.groups * 4; k++, w += kColumns) {
            for (int r = 0; r < kTile; r++) {
                const int16_t code = a[r][k];
                for (int n = 0; n < kColumns; n++) sum[r][n] += static_cast<uint32_t>(int32_t{code} * int32_t{w[n]});
            }
        }
    }
    for (int r = 0; r < kTile; r++) {
        for (int n = 0; n < kColumns; n++) m.sums[r * kColumns + n] = static_cast<int32_t>(sum[r][n]);
    }
}

void widen(const int8_t* packed, void* panel, int64_t groups) {
    int16_t* to = static_cast<int16_t*>(panel);
    for (int64_t g = 0; g < groups; g++, packed += 4 * kColumns) {
        for (int k = 0; k < 4; k++) {
            for (int n = 0; n < kColumns; n++) *to++ = packed[n * 4 + k];
        }
    }
}

void unpack(const uint8_t* packed, void* panel, int64_t groups) {
    int16_t* to = static_cast<int16_t*>(panel);
    constexpr int kHalf = kColumns / 2;
    for (int64_t g = 0; g < groups; g++, packed += 2 * kColumns) {
        for (int k = 0; k < 4; k++, to += kColumns) {
            for (int n = 0; n < kHalf; n++) {
                const int byte = packed[n * 4 + k];
                to[n] = static_cast<int16_t>(((byte & 15) ^ 8) - 8);
                to[n + kHalf] = static_cast<int16_t>(((byte >> 4) ^ 8) - 8);
            }
        }
    }
}

const MultiplyRows kMultiply[] = {nullptr, multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>};
const Kernels kKernels = {kRows, kColumns, 2, kMultiply, nullptr, kMultiply, unpack, widen, finish_plain};

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
        case DQ_AMX:
            return amx_kernels();
        case DQ_AMX_EMULATED:
            return amx_emulated_kernels();
        default:
            return portable_kernels();
    }
}

}  // namespace dq
