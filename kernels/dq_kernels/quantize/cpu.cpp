#include "context.h"

namespace dq {
void quantize(Pool&, const dq_quantize_args&) {}
}  // namespace dq
