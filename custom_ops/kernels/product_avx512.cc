// Products of codes with AVX-512, by float arithmetic that is exact where it matters.

#if defined(__x86_64__)

#ifdef __GNUC__
// GCC 12 takes the undefined third operand of its own intrinsics for a fault.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstdlib>
#include <cstring>

#include "kernels/product_kernels.h"

namespace lns {
namespace {

#include "kernels/product_lanes_avx512.inc"
#include "kernels/product_finish.inc"
#include "kernels/product_codes.inc"
#include "kernels/product_floats.inc"
#include "kernels/product_scaled.inc"

}  // namespace

const ProductKernels kProductFloatsAvx512 = {"floats_avx512", FloatsCan,
                                             FloatsPackedSize, FloatsPack, FloatsRows};
const ProductKernels kProductScaledAvx512 = {"scaled_avx512", ScaledCan,
                                             ScaledPackedSize, ScaledPack, ScaledRows};

}  // namespace lns

#endif  // defined(__x86_64__)
