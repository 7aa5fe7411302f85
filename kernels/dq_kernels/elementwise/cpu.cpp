#include "context.h"

namespace dq {
void elementwise(Pool&, const dq_elementwise_args&) {}
}  // namespace dq
