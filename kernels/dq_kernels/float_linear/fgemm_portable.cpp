// The float product in plain C++ on vectors of 4, which every 64-bit CPU has.
#include "float_linear/fgemm.h"

#define DQ_FGEMM portable
#define W 4

#include "simd/plain_floats.inc"
#include "float_linear/fgemm.inc"
#include "attention/pairs.inc"
#include "attention/quads.inc"
