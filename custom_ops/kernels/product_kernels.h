// Products of codes as loops without TensorFlow. There are several ways to compute one,
// each written for some instruction sets, and all give the same bits.

#ifndef TF_LNS_KERNELS_PRODUCT_KERNELS_H_
#define TF_LNS_KERNELS_PRODUCT_KERNELS_H_

#include <cstdint>

#include "core/product.h"

namespace lns {

// Columns are shared out to threads, and packed, in multiples of this.
constexpr int64_t kProductPanel = 64;

// Rows of a times columns of a packed b [k, n], and where the result goes. Pointers to
// results are those of the first row and of column 0 of b.
struct ProductBlock {
  // Element (i, j) of a, i < m, j < k, at i * row_stride + j * column_stride; rows are
  // read fastest where one of the strides is 1.
  const void* a = nullptr;
  int64_t row_stride = 0, column_stride = 1;
  int64_t m = 0, k = 0, n = 0;
  const void* packed = nullptr;
  int64_t begin = 0, end = 0;  // columns to compute; `begin` a multiple of the panel

  // Columns from one row of the results to the next; at least n.
  int64_t result_stride = 0;

  // [m, n, plan.bins], or null.
  int32_t* accumulators = nullptr;

  // [m, n], or null: what the accumulators stand for, times float32(row scale * column
  // scale). A stride of 0 is one scale for all.
  float* product = nullptr;
  bool add = false;  // to what is there
  const float* row_scale = nullptr;
  int64_t row_scale_stride = 0;
  const float* column_scale = nullptr;
  int64_t column_scale_stride = 0;
};

// Codes are int8_t up to 8 bits, int16_t above; strides count elements.
struct ProductKernels {
  const char* name;

  // Whether a product of `k` terms can be computed in this way.
  bool (*can)(const ProductPlan& plan, int64_t k);

  // Bytes of a packed matrix b of k rows and n columns.
  int64_t (*packed_size)(const ProductPlan& plan, int64_t k, int64_t n);

  // Packs columns [begin, end) of b, whose element (i, j) lies at i * row_stride + j *
  // column_stride. `begin` is a multiple of the panel, `packed` aligned to 64 bytes.
  // Returns whether all codes lie in the format; rows with others give nonsense.
  bool (*pack)(const ProductPlan& plan, const void* b, int64_t row_stride,
               int64_t column_stride, int64_t k, int64_t n, int64_t begin, int64_t end,
               void* packed);

  // Computes a block of what was packed with the same plan and k.
  void (*rows)(const ProductPlan& plan, const ProductBlock& block);
};

// Term by term; for any plan and any CPU.
extern const ProductKernels kProductPlain;

#if defined(__x86_64__)
// Codes of up to 8 bits, terms as tables of bytes.
extern const ProductKernels kProductPlanesAvx512Vbmi;
// Any width, a term in a few instructions of float arithmetic.
extern const ProductKernels kProductFloatsAvx2, kProductFloatsAvx512;
// Base factors up to 8 and 16, for many rows: fewer instructions after some
// preparation.
extern const ProductKernels kProductScaledAvx2, kProductScaledAvx512;
#endif

// As `rows` of the plain kernels for contiguous rows of a and all columns, and counts
// the accumulators that were clamped and those with a term that lost bits.
void RowsWithCounts(const ProductPlan& plan, const ProductBlock& block,
                    int64_t* saturated, int64_t* truncated);

// Position of the first code outside of the format, or -1.
int64_t FirstOutside(const Format& format, const void* codes, int64_t n);

// The values of `count` outputs, the scalar form: totals of accumulators, under one row
// scale.
void FinishPlain(const ProductPlan& plan, const int32_t* accumulators, int64_t count,
                 float row_scale, const float* column_scale,
                 int64_t column_scale_stride, bool add, float* product);

}  // namespace lns

#endif  // TF_LNS_KERNELS_PRODUCT_KERNELS_H_
