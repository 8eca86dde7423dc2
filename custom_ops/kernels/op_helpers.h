// What the TensorFlow kernels share: attributes to plans, scales, sharding.

#ifndef TF_LNS_KERNELS_OP_HELPERS_H_
#define TF_LNS_KERNELS_OP_HELPERS_H_

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "core/codec.h"
#include "core/scale_view.h"
#include "ops/status.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"

namespace lns {

using tensorflow::DataType;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;

using tensorflow::Tensor;
using tensorflow::TensorShape;

// The format in attributes `<prefix>bits` and `<prefix>base_factor`, checked.
Status GetFormat(OpKernelConstruction* ctx, const std::string& prefix, Format* format);

// InvalidArgument unless `dtype` is the one that holds codes of `format`.
Status CheckCodeType(const Format& format, DataType dtype);

// The attribute `rounding`.
Status GetRounding(OpKernelConstruction* ctx, Rounding* rounding);

// The attribute `name`, "clamp" or "flush".
Status GetUnderflow(OpKernelConstruction* ctx, const std::string& name,
                    Underflow* underflow);

// Format, rounding and underflow of a codec op.
Status GetCodecPlan(OpKernelConstruction* ctx, CodecPlan* plan);

// The attributes `axis` and `vector_size`, which say how a scale lies over a tensor.
struct ScaleLayout {
  std::vector<int32_t> axis;
  int64_t vector_size = 0;

  Status Init(OpKernelConstruction* ctx, const std::string& axis_name,
              bool with_vectors);
  Status View(const TensorShape& shape, ScaleView* view) const;
  TensorShape ScaleShape(
      const TensorShape& shape) const;  // of a shape that View accepts
};

// Q_G of an optimizer's op: whether the gradient is quantized first, how, and how its
// scale lies.
Status GetGradientPlan(OpKernelConstruction* ctx, bool* quantize, CodecPlan* plan,
                       ScaleLayout* layout);

// The attributes `beta` and `g_bound` of an optimizer's op, checked.
Status GetMadamAttributes(OpKernelConstruction* ctx, float* beta, float* g_bound);

// InvalidArgument unless `scale` has the layout's shape and all its elements are finite
// normals.
Status CheckScale(const Tensor& scale, const ScaleLayout& layout,
                  const TensorShape& shape);

// A scalar input; InvalidArgument if it is none.
template <typename T>
Status GetScalar(OpKernelContext* ctx, int index, const char* name, T* value) {
  const Tensor& tensor = ctx->input(index);
  if (tensor.dims() != 0) {
    return InvalidArgument(name, " must be a scalar, got shape ",
                           tensor.shape().DebugString());
  }
  *value = tensor.scalar<T>()();
  return absl::OkStatus();
}

// Whether an output is so large that its start is gone from the caches once its end is
// written; see CodecPlan::around_cache.
bool WriteAroundCache(const Tensor& output);

// Runs work(begin, end) over pieces of [0, n) on TensorFlow's own threads. Pieces start
// at multiples of 64, so that their borders do not share cache lines.
void Parallel(OpKernelContext* ctx, int64_t n, double nanoseconds_per_element,
              const std::function<void(int64_t, int64_t)>& work);

// Runs work(offset, count, scale, scale_stride) over all n elements of a tensor in
// pieces that lie under one scale (stride 0) or under one each (stride 1), on
// TensorFlow's own threads.
void ParallelUnderScales(
    OpKernelContext* ctx, const ScaleView& view, const float* scales, int64_t n,
    double nanoseconds_per_element,
    const std::function<void(int64_t, int64_t, const float*, int)>& work);

// Keeps the smallest of the positions reported by any thread.
class FirstPosition {
 public:
  void Report(int64_t position) {
    int64_t seen = first_.load(std::memory_order_relaxed);
    while ((seen < 0 || position < seen) &&
           !first_.compare_exchange_weak(seen, position)) {
    }
  }
  int64_t get() const { return first_.load(); }  // -1 for none

 private:
  std::atomic<int64_t> first_{-1};
};

// Abs-max per scale into largest[view.scales()], the same for any number of threads.
void AbsMaxPerScale(OpKernelContext* ctx, const float* x, const ScaleView& view,
                    float* largest);

// The scale of x into `scale`, of the layout's shape.
void ScaleOf(OpKernelContext* ctx, const Format& format, bool power_of_two,
             const Tensor& x, const ScaleView& view, Tensor* scale);

// Quantizes x under its scale into y.
void QuantizeTensor(OpKernelContext* ctx, CodecPlan plan, const ScaleView& view,
                    const Tensor& x, const Tensor& scale, Tensor* y);

}  // namespace lns

#endif  // TF_LNS_KERNELS_OP_HELPERS_H_
