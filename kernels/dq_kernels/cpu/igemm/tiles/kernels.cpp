// The tile kernels, compiled twice from one source: for AMX, and for tests with plain C++ in place of each instruction.
#include "igemm/tiles/tiles.h"
#include "simd/simd.h"

#if DQ_HAS_AMX
DQ_AMX_BEGIN
namespace dq {
namespace amx {
namespace {
// clang-format off
#include "igemm/zmm.inc"
#include "igemm/finish.inc"
#include "igemm/finish_vector.inc"
#include "igemm/tiles/instructions.inc"
#include "igemm/tiles/multiply.inc"
// clang-format on
}  // namespace
}  // namespace amx
}  // namespace dq
DQ_ISA_END
#undef DQ_TILE_CONFIGURE
#undef DQ_TILE_RELEASE
#undef DQ_TILE_ZERO
#undef DQ_TILE_LOAD
#undef DQ_TILE_STORE
#undef DQ_TILE_DOT
#undef DQ_TILE_DOT_BFLOAT16
#undef DQ_TILE_OF_FEW
#endif

namespace dq {
namespace amx_emulated {
namespace {
// clang-format off
#include "igemm/tiles/vectors.inc"
#include "igemm/finish.inc"
#include "igemm/finish_vector.inc"
#include "igemm/tiles/emulated.inc"
#include "igemm/tiles/multiply.inc"
// clang-format on
}  // namespace
}  // namespace amx_emulated

#if DQ_HAS_AMX
const Kernels& amx_kernels() { return amx::kKernels; }
#else
const Kernels& amx_kernels() { return amx_emulated::kKernels; }
#endif
const Kernels& amx_emulated_kernels() { return amx_emulated::kKernels; }

}  // namespace dq
