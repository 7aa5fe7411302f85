// The two ways of attention behind one entry.
#pragma once
#include "context.h"

namespace dq {

// With codes; every key and value of a head must fit the scratch, see dq_attention_codes_fit.
void attention_in_codes(Pool& pool, const dq_attention_args& args);

}  // namespace dq
