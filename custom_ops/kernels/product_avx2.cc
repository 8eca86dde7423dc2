// Products of codes with AVX2, by float arithmetic that is exact where it matters.

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

#include "kernels/product_lanes_avx2.inc"
#include "kernels/product_finish.inc"
#include "kernels/product_codes.inc"
#include "kernels/product_floats.inc"
#include "kernels/product_scaled.inc"

}  // namespace

const ProductKernels kProductFloatsAvx2 = {"floats_avx2", FloatsCan, FloatsPackedSize,
                                           FloatsPack, FloatsRows};
const ProductKernels kProductScaledAvx2 = {"scaled_avx2", ScaledCan, ScaledPackedSize,
                                           ScaledPack, ScaledRows};

}  // namespace lns

#endif  // defined(__x86_64__)
