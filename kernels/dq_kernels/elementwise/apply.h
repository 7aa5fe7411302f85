// One kind of operation on contiguous arrays, compiled for each instruction set; all give the same bits.
#pragma once
#include <cstdint>

#include "dq_kernels.h"

namespace dq {
namespace elementwise_kinds {

// y[i] = kind(a[i], b[i]); y may be a or b. b is not read where the kind has one operand.
using Apply = void (*)(int32_t kind, float scalar, const float* a, const float* b, float* y, int64_t count);

void apply_portable(int32_t kind, float scalar, const float* a, const float* b, float* y, int64_t count);
#if defined(__x86_64__)
void apply_avx2(int32_t kind, float scalar, const float* a, const float* b, float* y, int64_t count);
void apply_avx512(int32_t kind, float scalar, const float* a, const float* b, float* y, int64_t count);
#endif

}  // namespace elementwise_kinds
}  // namespace dq
