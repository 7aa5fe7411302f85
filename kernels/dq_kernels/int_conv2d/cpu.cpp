// int_conv2d: the integer product as it is.
#include "igemm/igemm.h"

namespace dq {
void int_conv2d(Pool& pool, const dq_int_conv2d_args& args) { igemm(pool, args); }
}  // namespace dq
