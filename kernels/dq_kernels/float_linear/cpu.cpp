#include "context.h"

namespace dq {
void float_linear(Pool&, const dq_float_linear_args&) {}
}  // namespace dq
