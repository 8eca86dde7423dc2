#include "kernels/op_helpers.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>

#include "kernels/dispatch.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/framework/tensor_shape.h"
#include "tensorflow/core/platform/threadpool.h"

namespace lns {

Status GetFormat(OpKernelConstruction* ctx, const std::string& prefix, Format* format) {
  TF_RETURN_IF_ERROR(ctx->GetAttr(prefix + "bits", &format->bits));
  TF_RETURN_IF_ERROR(ctx->GetAttr(prefix + "base_factor", &format->base_factor));
  const std::string error = format->Error();
  if (!error.empty()) return InvalidArgument(prefix, error);
  return absl::OkStatus();
}

Status CheckCodeType(const Format& format, DataType dtype) {
  const DataType expected =
      format.bits <= 8 ? tensorflow::DT_INT8 : tensorflow::DT_INT16;
  if (dtype == expected) return absl::OkStatus();
  return InvalidArgument("codes of ", format.bits, " bits must be ",
                         tensorflow::DataTypeString(expected), ", got ",
                         tensorflow::DataTypeString(dtype));
}

Status GetRounding(OpKernelConstruction* ctx, Rounding* rounding) {
  std::string name;
  TF_RETURN_IF_ERROR(ctx->GetAttr("rounding", &name));
  *rounding = name == "stochastic" ? Rounding::kStochastic : Rounding::kNearest;
  return absl::OkStatus();
}

Status GetUnderflow(OpKernelConstruction* ctx, const std::string& name,
                    Underflow* underflow) {
  std::string value;
  TF_RETURN_IF_ERROR(ctx->GetAttr(name, &value));
  *underflow = value == "flush" ? Underflow::kFlush : Underflow::kClamp;
  return absl::OkStatus();
}

Status GetCodecPlan(OpKernelConstruction* ctx, CodecPlan* plan) {
  Format format;
  TF_RETURN_IF_ERROR(GetFormat(ctx, "", &format));
  *plan = CodecPlan(format);
  TF_RETURN_IF_ERROR(GetRounding(ctx, &plan->rounding));
  return GetUnderflow(ctx, "underflow", &plan->underflow);
}

Status GetGradientPlan(OpKernelConstruction* ctx, bool* quantize, CodecPlan* plan,
                       ScaleLayout* layout) {
  int bits;
  TF_RETURN_IF_ERROR(ctx->GetAttr("grad_bits", &bits));
  *quantize = bits != 0;
  if (!*quantize) return absl::OkStatus();
  Format format;
  TF_RETURN_IF_ERROR(GetFormat(ctx, "grad_", &format));
  *plan = CodecPlan(format);
  plan->pass_infinity = true;  // so that the step sees it, and counts it
  TF_RETURN_IF_ERROR(GetUnderflow(ctx, "grad_underflow", &plan->underflow));
  return layout->Init(ctx, "grad_axis", false);
}

Status GetMadamAttributes(OpKernelConstruction* ctx, float* beta, float* g_bound) {
  TF_RETURN_IF_ERROR(ctx->GetAttr("beta", beta));
  TF_RETURN_IF_ERROR(ctx->GetAttr("g_bound", g_bound));
  if (!(*beta > 0.0f && *beta < 1.0f)) {
    return InvalidArgument("beta must lie between 0 and 1, got ", *beta);
  }
  if (!(*g_bound > 0.0f && std::isfinite(*g_bound))) {
    return InvalidArgument("g_bound must be positive and finite, got ", *g_bound);
  }
  return absl::OkStatus();
}

Status ScaleLayout::Init(OpKernelConstruction* ctx, const std::string& axis_name,
                         bool with_vectors) {
  TF_RETURN_IF_ERROR(ctx->GetAttr(axis_name, &axis));
  if (with_vectors) TF_RETURN_IF_ERROR(ctx->GetAttr("vector_size", &vector_size));
  if (vector_size < 0) {
    return InvalidArgument("vector_size must be at least 1, or 0 for none, got ",
                           vector_size);
  }
  if (vector_size > 0 && axis.size() != 1) {
    return InvalidArgument("vector_size needs exactly one axis, got ", axis.size());
  }
  for (size_t i = 0; i < axis.size(); ++i) {
    if (axis[i] < 0 || axis[i] > 254 || (i > 0 && axis[i] != axis[i - 1] + 1)) {
      return InvalidArgument(axis_name, " must name neighbouring axes in rising order");
    }
  }
  return absl::OkStatus();
}

Status ScaleLayout::View(const TensorShape& shape, ScaleView* view) const {
  *view = ScaleView();
  view->vector_size = vector_size;
  if (axis.empty()) {
    view->inner = shape.num_elements();
    return absl::OkStatus();
  }
  if (axis.back() >= shape.dims()) {
    return InvalidArgument("axis ", axis.back(), " is out of range for shape ",
                           shape.DebugString());
  }
  for (int i = 0; i < shape.dims(); ++i) {
    int64_t* part = i < axis.front()  ? &view->outer
                    : i > axis.back() ? &view->inner
                                      : &view->channels;
    *part *= shape.dim_size(i);
  }
  // A vector longer than the axis is the whole axis: keeps the arithmetic of blocks()
  // in range.
  view->vector_size = std::min(vector_size, std::max<int64_t>(view->channels, 1));
  return absl::OkStatus();
}

TensorShape ScaleLayout::ScaleShape(const TensorShape& shape) const {
  TensorShape scale;
  if (vector_size > 0) {
    scale = shape;
    const int64_t n = shape.dim_size(axis[0]);
    scale.set_dim(axis[0], n / vector_size + (n % vector_size != 0));
  } else {
    for (int32_t a : axis) scale.AddDim(shape.dim_size(a));
  }
  return scale;
}

Status CheckScale(const Tensor& scale, const ScaleLayout& layout,
                  const TensorShape& shape) {
  const TensorShape expected = layout.ScaleShape(shape);
  if (scale.shape() != expected) {
    return InvalidArgument("scale must have shape ", expected.DebugString(), ", got ",
                           scale.shape().DebugString());
  }
  const auto values = scale.flat<float>();
  for (int64_t i = 0; i < values.size(); ++i) {
    if (!IsValidScale(values(i))) {
      return InvalidArgument("scale must be finite and at least 2^-126, got ",
                             values(i), " at flat index ", i);
    }
  }
  return absl::OkStatus();
}

bool WriteAroundCache(const Tensor& output) {
  constexpr size_t kLarge = 32 << 20;  // a large share of a last-level cache
  return output.TotalBytes() >= kLarge;
}

void Parallel(OpKernelContext* ctx, int64_t n, double nanoseconds_per_element,
              const std::function<void(int64_t, int64_t)>& work) {
  constexpr int64_t kAlign = 64;
  // Work below which waking a thread does not pay, in nanoseconds.
  constexpr double kSmallestPiece = 50000.0;
  // So many pieces per thread that one held up by other work does not hold up the rest.
  constexpr int64_t kPiecesPerThread = 16;
  auto* pool = ctx->device()->tensorflow_cpu_worker_threads()->workers;
  const int threads = pool->NumThreads();
  const double total = n * nanoseconds_per_element;
  const int64_t pieces = std::min<int64_t>(
      threads * kPiecesPerThread, static_cast<int64_t>(total / kSmallestPiece));
  if (threads <= 1 || pieces <= 1) {
    if (n > 0) work(0, n);
    return;
  }
  const int64_t block = ((n + pieces - 1) / pieces + kAlign - 1) / kAlign * kAlign;
  pool->ParallelFor(n, tsl::thread::ThreadPool::SchedulingParams::Fixed(block), work);
}

namespace {

// Where channels are innermost and few, a row of scales is too short for the kernels'
// vectors: how often to repeat it, for rows of at least `length` if there are so many.
int64_t RowRepeats(const ScaleView& view, int64_t length) {
  const bool rows = view.vector_size == 0 && view.inner == 1 && view.channels > 1;
  if (!rows || view.channels >= length) return 1;
  int64_t repeats = (length + view.channels - 1) / view.channels;
  // In a large tensor rows are worth starting with a cache line, too.
  const int64_t floats_per_line = 16;
  const int64_t step = floats_per_line / std::gcd(floats_per_line, view.channels);
  const int64_t whole_lines = (repeats + step - 1) / step * step;
  if (view.outer >= 64 * whole_lines) repeats = whole_lines;
  return std::min(view.outer, repeats);
}

}  // namespace

void ParallelUnderScales(
    OpKernelContext* ctx, const ScaleView& view, const float* scales, int64_t n,
    double nanoseconds_per_element,
    const std::function<void(int64_t, int64_t, const float*, int)>& work) {
  ScaleView rows = view;
  std::vector<float> repeated;
  if (const int64_t repeats = RowRepeats(view, 2048); repeats > 1) {
    for (int64_t i = 0; i < repeats; ++i) {
      repeated.insert(repeated.end(), scales, scales + view.channels);
    }
    scales = repeated.data();
    rows.channels *= repeats;
  }
  Parallel(ctx, n, nanoseconds_per_element, [&](int64_t begin, int64_t end) {
    rows.ForEachPiece(
        begin, end,
        [&](int64_t at, int64_t count, int64_t first) {
          work(at, count, scales + first, 0);
        },
        [&](int64_t at, int64_t count, int64_t first) {
          work(at, count, scales + first, 1);
        });
  });
}

void AbsMaxPerScale(OpKernelContext* ctx, const float* x, const ScaleView& view,
                    float* largest) {
  const int64_t scales = view.scales();
  std::fill(largest, largest + scales, 0.0f);
  ScaleView rows = view;
  rows.channels *= RowRepeats(view, 1024);
  // A thread's own maxima, unless they take more memory than the sharing is worth.
  const int64_t row_scales = rows.scales();
  const bool own_maxima = row_scales <= 65536;
  std::mutex mutex;
  Parallel(ctx, view.elements(), 0.1, [&](int64_t begin, int64_t end) {
    // A maximum does not depend on the order, so neither does the result on the
    // threads.
    std::vector<float> own(own_maxima ? row_scales : 0, 0.0f);
    std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
    if (!own_maxima) lock.lock();
    float* out = own_maxima ? own.data() : largest;
    rows.ForEachPiece(
        begin, end,
        [&](int64_t at, int64_t count, int64_t scale) {
          out[scale] = std::max(out[scale], Codec().abs_max(x + at, count));
        },
        [&](int64_t at, int64_t count, int64_t scale) {
          Codec().abs_max_lanes(x + at, out + scale, count);
        });
    if (own_maxima) {
      lock.lock();
      for (int64_t row = 0; row < row_scales; row += scales) {
        for (int64_t i = 0; i < scales; ++i) {
          largest[i] = std::max(largest[i], own[row + i]);
        }
      }
    }
  });
}

void ScaleOf(OpKernelContext* ctx, const Format& format, bool power_of_two,
             const Tensor& x, const ScaleView& view, Tensor* scale) {
  float* values = scale->flat<float>().data();
  AbsMaxPerScale(ctx, x.flat<float>().data(), view, values);
  for (int64_t i = 0; i < scale->NumElements(); ++i) {
    values[i] = ScaleFromAbsMax(format, values[i], power_of_two);
  }
}

void QuantizeTensor(OpKernelContext* ctx, CodecPlan plan, const ScaleView& view,
                    const Tensor& x, const Tensor& scale, Tensor* y) {
  // In place, the memory is in the cache already.
  plan.around_cache = x.data() != y->data() && WriteAroundCache(*y);
  const float* in = x.flat<float>().data();
  const float* scales = scale.flat<float>().data();
  float* out = y->flat<float>().data();
  const double cost = plan.rounding == Rounding::kStochastic ? 1.0 : 0.25;
  ParallelUnderScales(ctx, view, scales, x.NumElements(), cost,
                      [&](int64_t at, int64_t count, const float* factor, int stride) {
                        Codec().quantize(plan, in + at, factor, stride, at, out + at,
                                         count);
                      });
}

}  // namespace lns
