#include "context.h"

namespace dq {
void attention(Pool&, const dq_attention_args&) {}
}  // namespace dq
