// The LNS-Madam step with AVX-512.

#if defined(__x86_64__)

#ifdef __GNUC__
// GCC 12 takes the undefined third operand of its own intrinsics for a fault.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "kernels/madam_kernels.h"

namespace lns {
namespace {

#include "kernels/madam_avx512.inc"
#include "kernels/madam_shuffle.inc"
#include "kernels/madam_vector.inc"
}  // namespace

const MadamKernels kMadamAvx512 = {Step, StepCompact, ShiftCompactBytes, Additive};

}  // namespace lns

#endif  // defined(__x86_64__)
