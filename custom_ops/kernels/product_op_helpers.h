// What the ops of products share: attributes to plans, shapes, scales, and the product
// itself shared out over TensorFlow's threads.

#ifndef TF_LNS_KERNELS_PRODUCT_OP_HELPERS_H_
#define TF_LNS_KERNELS_PRODUCT_OP_HELPERS_H_

#include <atomic>
#include <functional>
#include <vector>

#include "core/product.h"
#include "kernels/op_helpers.h"

namespace lns {

// The attributes of a datapath and of the operands' formats, checked.
Status GetProductPlan(OpKernelConstruction* ctx, ProductPlan* plan);

// InvalidArgument unless all codes lie in the format.
Status CheckCodes(OpKernelContext* ctx, const Format& format, const Tensor& codes,
                  const char* name);

// Runs work(i) for all i < n on TensorFlow's threads; one after the other where the
// whole is not worth waking a thread.
void ShareOut(OpKernelContext* ctx, int64_t n, double nanoseconds_each,
              const std::function<void(int64_t)>& work);

// Shapes of a product of (batches of) matrices.
struct MatmulShape {
  TensorShape a, b, lead, output;  // `lead`: axes before the last two
  int64_t m = 0, k = 0, n = 0;
  int64_t vectors = 1;  // along k, at least 1
  bool transpose_a = false, transpose_b = false;

  Status Init(const ProductPlan& plan, const TensorShape& a, const TensorShape& b,
              bool transpose_a, bool transpose_b);
  int64_t batches() const { return lead.num_elements(); }
};

// InvalidArgument unless a scale is a scalar or has 1 or the full size on each axis of
// [lead..., rows, columns].
Status CheckScaleShape(const TensorShape& scale, const char* name,
                       const TensorShape& lead, int64_t rows, int64_t columns);

// A scale laid over [lead..., rows, columns]; each of its axes is 1 or the full size.
class ScaleGrid {
 public:
  Status Init(const Tensor& scale, const char* name, const TensorShape& lead,
              int64_t rows, int64_t columns);

  // The scale at a flat index of `lead`, a row and a column.
  const float* At(int64_t batch, int64_t row, int64_t column) const {
    return values_ + Offset(batch) + row * row_stride_ + column * column_stride_;
  }
  int64_t row_stride() const { return row_stride_; }  // 0 where all are the same
  int64_t column_stride() const { return column_stride_; }
  bool changes_along_lead() const;

 private:
  int64_t Offset(int64_t batch) const;

  const float* values_ = nullptr;
  int64_t row_stride_ = 0, column_stride_ = 0;
  std::vector<int64_t> lead_sizes_, lead_strides_;
};

struct Counters {
  std::atomic<int64_t> saturated{0}, truncated{0};
};

struct Product {
  const ProductPlan& plan;
  const MatmulShape& shape;
  const ScaleGrid &a_scale, &b_scale;

  // Scales that do not change along K. `kept` (accumulators) and `counters` may be
  // null. False where b holds codes outside of its format; the result is nonsense then.
  Status Whole(OpKernelContext* ctx, const Tensor& a, const Tensor& b, float* product,
               int32_t* kept, Counters* counters, bool* good) const;

  // A scale per vector: an accumulator for each, results added in float32.
  Status PerVector(OpKernelContext* ctx, const Tensor& a, const Tensor& b,
                   float* product, bool* good) const;
};

}  // namespace lns

#endif  // TF_LNS_KERNELS_PRODUCT_OP_HELPERS_H_
