// The kinds for any CPU.
#include "elementwise/apply.h"
#define DQ_APPLY apply_portable
#include "elementwise/apply.inc"
