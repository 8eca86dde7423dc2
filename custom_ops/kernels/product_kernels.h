// Products of codes as loops without TensorFlow. Each is implemented once per
// instruction set, and all give the same accumulators.

#ifndef TF_LNS_KERNELS_PRODUCT_KERNELS_H_
#define TF_LNS_KERNELS_PRODUCT_KERNELS_H_

#include <cstdint>

#include "core/product.h"

namespace lns {

// Codes are int8_t up to 8 bits, int16_t above; strides count elements.
struct ProductKernels {
  // Bytes of a packed matrix b of k rows and n columns.
  int64_t (*packed_size)(const ProductPlan& plan, int64_t k, int64_t n);

  // Packs columns [begin, end) of b, whose element (i, j) lies at i * row_stride +
  // j * column_stride. `begin` is a multiple of 64.
  void (*pack)(const ProductPlan& plan, const void* b, int64_t row_stride,
               int64_t column_stride, int64_t k, int64_t n, int64_t begin, int64_t end,
               void* packed);

  // Accumulators of m rows of a times all of b: [m, n, plan.bins]. Rows of a are
  // contiguous.
  void (*rows)(const ProductPlan& plan, const void* a, int64_t row_stride, int64_t m,
               int64_t k, int64_t n, const void* packed, int32_t* accumulators);
};

extern const ProductKernels kProductPlain;

// As `rows` of the plain kernels, and counts the accumulators that were clamped and
// those with a term that lost bits.
void RowsWithCounts(const ProductPlan& plan, const void* a, int64_t row_stride,
                    int64_t m, int64_t k, int64_t n, const void* packed,
                    int32_t* accumulators, int64_t* saturated, int64_t* truncated);

// Position of the first code outside of the format, or -1.
int64_t FirstOutside(const Format& format, const void* codes, int64_t n);

}  // namespace lns

#endif  // TF_LNS_KERNELS_PRODUCT_KERNELS_H_
