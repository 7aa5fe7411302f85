#include "context.h"

namespace dq {
void int_linear(Pool&, const dq_int_linear_args&) {}
}  // namespace dq
