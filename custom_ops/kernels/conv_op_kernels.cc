// CPU kernel of convolutions of codes: check, allocate, then either products of a few
// patches at a time with the filters of each group, or the loops for depthwise filters.

#include <cstring>
#include <memory>

#include "kernels/conv_shape.h"
#include "kernels/depthwise_kernels.h"
#include "kernels/dispatch.h"
#include "kernels/op_helpers.h"
#include "kernels/patches.h"
#include "kernels/product_kernels.h"
#include "kernels/product_op_helpers.h"

namespace lns {
namespace {

int64_t Pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

Status CheckScaleValues(const Tensor& scale, const char* name) {
  const float* values = scale.flat<float>().data();
  for (int64_t i = 0; i < scale.NumElements(); ++i) {
    if (!IsValidScale(values[i])) {
      return InvalidArgument(name, " must be finite and at least 2^-126, got ",
                             values[i], " at flat index ", i);
    }
  }
  return absl::OkStatus();
}

// The operands of one convolution, checked.
struct Convolution {
  const ProductPlan& plan;
  const ConvShape& shape;
  const void* x;
  const char* kernel;
  const float *x_scale, *kernel_scale;
  int64_t kernel_scale_stride;
  float* result;

  int64_t x_size() const { return plan.a.bits <= 8 ? 1 : 2; }
  int64_t kernel_size() const { return plan.b.bits <= 8 ? 1 : 2; }
};

// --- Products of patches ------------------------------------------------------------

// Bytes of patches that are made before they are multiplied: they stay in the cache.
constexpr int64_t kPatchBytes = 256 * 1024;
constexpr int64_t kFewestRows = 32;

class PatchProducts {
 public:
  PatchProducts(const Convolution& conv, const Patches& patches)
      : conv_(conv),
        patches_(patches),
        kernels_(Products(conv.plan, conv.shape.images * patches.outputs(),
                          conv.shape.k())) {
    const ConvShape& shape = conv.shape;
    rows_ = shape.images * patches.outputs();
    at_once_ = std::max(kFewestRows,
                        kPatchBytes / std::max<int64_t>(1, shape.k() * conv.x_size()));
    const int64_t size =
        kernels_.packed_size(conv.plan, shape.k(), shape.group_filters);
    packed_stride_ = std::max<int64_t>(1, Pieces(size, 64)) * 64;
  }

  // False in `good` where the kernel holds codes outside of its format.
  Status Run(OpKernelContext* ctx, bool* good) {
    TF_RETURN_IF_ERROR(ctx->allocate_temp(
        tensorflow::DT_INT8, {packed_stride_ * conv_.shape.groups}, &packed_));
    *good = Pack(ctx);
    if (!*good) return absl::OkStatus();

    const ConvShape& shape = conv_.shape;
    const int threads =
        ctx->device()->tensorflow_cpu_worker_threads()->workers->NumThreads();
    const int64_t wanted = threads == 1 ? 1 : 4 * threads;
    const int64_t down = std::max<int64_t>(
        1, std::min(Pieces(wanted, shape.groups), Pieces(rows_, kFewestRows)));
    const int64_t panels = Pieces(shape.group_filters, kProductPanel);
    const int64_t most_across = Pieces(wanted, shape.groups * down);
    const int64_t width = Pieces(panels, std::min(panels, most_across)) * kProductPanel;
    const int64_t across = Pieces(shape.group_filters, width);
    const int64_t pieces = shape.groups * down * across;
    const double nanoseconds =
        0.05 * rows_ * shape.k() * shape.filters * conv_.plan.bins / pieces;
    ShareOut(ctx, pieces, nanoseconds, [&](int64_t piece) {
      const int64_t begin = piece % across * width;
      const int64_t part = piece / across % down, group = piece / across / down;
      Compute(group, rows_ * part / down, rows_ * (part + 1) / down, begin,
              std::min(shape.group_filters, begin + width));
    });
    return absl::OkStatus();
  }

 private:
  char* PackedOf(int64_t group) {
    return static_cast<char*>(packed_.data()) + group * packed_stride_;
  }

  bool Pack(OpKernelContext* ctx) {
    const ConvShape& shape = conv_.shape;
    std::atomic<bool> good{true};
    const int64_t panels = Pieces(shape.group_filters, kProductPanel);
    ShareOut(ctx, shape.groups * panels,
             0.3 * shape.k() * std::min(shape.group_filters, kProductPanel),
             [&](int64_t piece) {
               const int64_t group = piece / panels;
               const int64_t begin = piece % panels * kProductPanel;
               const char* b =
                   conv_.kernel + group * shape.group_filters * conv_.kernel_size();
               if (!kernels_.pack(conv_.plan, b, shape.filters, 1, shape.k(),
                                  shape.group_filters, begin,
                                  std::min(shape.group_filters, begin + kProductPanel),
                                  PackedOf(group))) {
                 good = false;
               }
             });
    return good;
  }

  // Rows [first, last) times columns [begin, end) of a group.
  void Compute(int64_t group, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const ConvShape& shape = conv_.shape;
    const int64_t at_once = std::min(at_once_, last - first);
    const bool direct = patches_.AreInput();
    std::unique_ptr<char[]> rows;
    if (!direct) rows.reset(new char[at_once * shape.k() * conv_.x_size()]);
    const int64_t column = group * shape.group_filters;
    ProductBlock block;
    block.k = shape.k();
    block.n = shape.group_filters;
    block.packed = PackedOf(group);
    block.begin = begin;
    block.end = end;
    block.result_stride = shape.filters;
    block.row_scale = conv_.x_scale;
    block.column_scale = conv_.kernel_scale + column * conv_.kernel_scale_stride;
    block.column_scale_stride = conv_.kernel_scale_stride;
    for (int64_t row = first; row < last; row += at_once) {
      block.m = std::min(at_once, last - row);
      block.product = conv_.result + row * shape.filters + column;
      if (direct) {
        block.a =
            static_cast<const char*>(conv_.x) +
            (row * shape.channels + group * shape.group_channels) * conv_.x_size();
        block.row_stride = shape.channels;
      } else {
        patches_.Copy(conv_.x, row, row + block.m, group * shape.group_channels,
                      shape.group_channels, rows.get());
        block.a = rows.get();
        block.row_stride = shape.k();
      }
      kernels_.rows(conv_.plan, block);
    }
  }

  const Convolution& conv_;
  const Patches& patches_;
  const ProductKernels& kernels_;
  int64_t rows_, at_once_, packed_stride_;
  Tensor packed_;
};

// --- Depthwise ----------------------------------------------------------------------

// Channels that a piece of the work has at least.
constexpr int64_t kFewestChannels = 32;

class DepthwiseProducts {
 public:
  DepthwiseProducts(const Convolution& conv, const DepthwisePlan& plan,
                    const Patches& patches)
      : conv_(conv),
        plan_(plan),
        patches_(patches),
        kernels_(plan.Fits(conv.shape.taps) ? Depthwises() : kDepthwisePlain) {}

  Status Run(OpKernelContext* ctx) {
    const ConvShape& shape = conv_.shape;
    kernel_ = conv_.kernel;
    if (shape.group_filters > 1) TF_RETURN_IF_ERROR(SplitMultiplier(ctx));
    const int threads =
        ctx->device()->tensorflow_cpu_worker_threads()->workers->NumThreads();
    const int64_t outputs = shape.images * patches_.outputs();
    const int64_t wanted = threads == 1 ? 1 : 4 * threads;
    const int64_t down = std::min(outputs, wanted);
    const int64_t across =
        std::min(Pieces(wanted, down), Pieces(shape.channels, kFewestChannels));
    const int64_t width =
        Pieces(Pieces(shape.channels, across), kFewestChannels) * kFewestChannels;
    const int64_t columns = Pieces(shape.channels, width);
    const double nanoseconds = (0.2 * shape.taps + 10.0) * shape.filters * outputs;
    ShareOut(ctx, down * columns, nanoseconds / (down * columns), [&](int64_t piece) {
      const int64_t part = piece / columns, first = piece % columns * width;
      Compute(outputs * part / down, outputs * (part + 1) / down, first,
              std::min(width, shape.channels - first));
    });
    return absl::OkStatus();
  }

 private:
  // [taps, channels, multiplier] to [multiplier, taps, channels].
  Status SplitMultiplier(OpKernelContext* ctx) {
    const ConvShape& shape = conv_.shape;
    const int64_t size = conv_.kernel_size();
    const int64_t elements = shape.taps * shape.channels;
    TF_RETURN_IF_ERROR(ctx->allocate_temp(
        tensorflow::DT_INT8, {elements * shape.group_filters * size}, &split_));
    char* out = static_cast<char*>(split_.data());
    for (int64_t m = 0; m < shape.group_filters; ++m) {
      for (int64_t i = 0; i < elements; ++i, out += size) {
        std::memcpy(out, conv_.kernel + (i * shape.group_filters + m) * size, size);
      }
    }
    kernel_ = static_cast<const char*>(split_.data());
    return absl::OkStatus();
  }

  // Outputs [begin, end) of channels [first, first + count).
  void Compute(int64_t begin, int64_t end, int64_t first, int64_t count) const {
    const ConvShape& shape = conv_.shape;
    const int64_t multiplier = shape.group_filters, bins = conv_.plan.bins;
    std::vector<int64_t> offsets(shape.taps);
    // Read in whole vectors.
    std::vector<int32_t> sums(count * bins), together(count * multiplier * bins + 16);
    const int64_t column = first * multiplier;
    ProductBlock block;
    block.n = count * multiplier;
    block.row_scale = conv_.x_scale;
    block.column_scale = conv_.kernel_scale + column * conv_.kernel_scale_stride;
    block.column_scale_stride = conv_.kernel_scale_stride;
    DepthwiseOutput output;
    output.x = static_cast<const char*>(conv_.x) + first * conv_.x_size();
    output.offsets = offsets.data();
    output.kernel_stride = shape.channels;
    output.taps = shape.taps;
    output.channels = count;
    for (int64_t i = begin; i < end; ++i) {
      patches_.Offsets(i, offsets.data());
      for (int64_t m = 0; m < multiplier; ++m) {
        output.kernel =
            kernel_ + (m * shape.taps * shape.channels + first) * conv_.kernel_size();
        output.accumulators = multiplier == 1 ? together.data() : sums.data();
        kernels_.output(plan_, output);
        if (multiplier == 1) continue;
        for (int64_t c = 0; c < count; ++c) {
          std::copy_n(sums.data() + c * bins, bins,
                      together.data() + (c * multiplier + m) * bins);
        }
      }
      block.product = conv_.result + i * shape.filters + column;
      kernels_.finish(conv_.plan, block, together.data());
    }
  }

  const Convolution& conv_;
  const DepthwisePlan& plan_;
  const Patches& patches_;
  const DepthwiseKernels& kernels_;
  const char* kernel_ = nullptr;
  Tensor split_;
};

// --- The op -------------------------------------------------------------------------

class ConvOp : public OpKernel {
 public:
  explicit ConvOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetProductPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.a, ctx->input_type(0)));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.b, ctx->input_type(1)));
    OP_REQUIRES_OK(ctx, attributes_.Init(ctx));
    depthwise_ = std::make_unique<DepthwisePlan>(plan_);
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &x = ctx->input(0), &kernel = ctx->input(1);
    const Tensor &x_scale = ctx->input(2), &kernel_scale = ctx->input(3);
    ConvShape shape;
    OP_REQUIRES_OK(ctx, shape.Init(attributes_, x.shape(), kernel.shape()));
    OP_REQUIRES(ctx, x_scale.dims() == 0,
                InvalidArgument("x_scale must be a scalar, got shape ",
                                x_scale.shape().DebugString()));
    OP_REQUIRES(
        ctx,
        kernel_scale.dims() == 0 ||
            kernel_scale.shape() == TensorShape({shape.filters}),
        InvalidArgument("kernel_scale must be a scalar or of shape [", shape.filters,
                        "], got shape ", kernel_scale.shape().DebugString()));
    OP_REQUIRES_OK(ctx, CheckScaleValues(x_scale, "x_scale"));
    OP_REQUIRES_OK(ctx, CheckScaleValues(kernel_scale, "kernel_scale"));
    OP_REQUIRES_OK(ctx, CheckCodes(ctx, plan_.a, x, "x"));
    Tensor* result;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape.output, &result));
    // Else packing checks them.
    if (shape.depthwise() || result->NumElements() == 0) {
      OP_REQUIRES_OK(ctx, CheckCodes(ctx, plan_.b, kernel, "kernel"));
    }
    if (result->NumElements() == 0) return;

    const Convolution conv{plan_,
                           shape,
                           x.data(),
                           static_cast<const char*>(kernel.data()),
                           x_scale.flat<float>().data(),
                           kernel_scale.flat<float>().data(),
                           kernel_scale.dims() == 0 ? 0 : 1,
                           result->flat<float>().data()};
    const Patches patches(shape.axes, shape.channels, conv.x_size());
    if (shape.depthwise()) {
      OP_REQUIRES_OK(ctx, DepthwiseProducts(conv, *depthwise_, patches).Run(ctx));
      return;
    }
    bool good;
    OP_REQUIRES_OK(ctx, PatchProducts(conv, patches).Run(ctx, &good));
    if (!good) OP_REQUIRES_OK(ctx, CheckCodes(ctx, plan_.b, kernel, "kernel"));
  }

 private:
  ProductPlan plan_;
  ConvAttributes attributes_;
  std::unique_ptr<DepthwisePlan> depthwise_;
};

REGISTER_KERNEL_BUILDER(Name("LnsConv").Device(tensorflow::DEVICE_CPU), ConvOp);

}  // namespace
}  // namespace lns
