// CPU kernels of the codec ops: check, allocate, shard, call kernels/codec_kernels.h.

#include "kernels/codec_kernels.h"
#include "kernels/dispatch.h"
#include "kernels/op_helpers.h"

namespace lns {
namespace {

using tensorflow::DEVICE_CPU;

class EncodeOp : public OpKernel {
 public:
  explicit EncodeOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetCodecPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.format, ctx->output_type(0)));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& x = ctx->input(0);
    const Tensor& scale = ctx->input(1);
    CodecPlan plan = plan_;
    int64_t seed = 0;
    ScaleView view;
    OP_REQUIRES_OK(ctx, GetScalar(ctx, 2, "seed", &seed));
    OP_REQUIRES_OK(ctx, layout_.View(x.shape(), &view));
    OP_REQUIRES_OK(ctx, CheckScale(scale, layout_, x.shape()));
    plan.key = RandomKey(static_cast<uint64_t>(seed));
    Tensor* codes;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, x.shape(), &codes));

    const float* in = x.flat<float>().data();
    const float* scales = scale.flat<float>().data();
    char* out = static_cast<char*>(codes->data());
    const int64_t size = tensorflow::DataTypeSize(codes->dtype());
    FirstPosition first_nan;
    ParallelUnderScales(
        ctx, view, scales, x.NumElements(), 0.5,
        [&](int64_t at, int64_t count, const float* factor, int stride) {
          const int64_t nan =
              Codec().encode(plan, in + at, factor, stride, at, out + at * size, count);
          if (nan >= 0) first_nan.Report(at + nan);
        });
    OP_REQUIRES(ctx, first_nan.get() < 0,
                InvalidArgument("x must not hold NaN; the first one is at flat index ",
                                first_nan.get()));
  }

 private:
  CodecPlan plan_;
  ScaleLayout layout_;
};

class DecodeOp : public OpKernel {
 public:
  explicit DecodeOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    Format format;
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &format));
    OP_REQUIRES_OK(ctx, CheckCodeType(format, ctx->input_type(0)));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
    plan_ = CodecPlan(format);
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& codes = ctx->input(0);
    const Tensor& scale = ctx->input(1);
    ScaleView view;
    OP_REQUIRES_OK(ctx, layout_.View(codes.shape(), &view));
    OP_REQUIRES_OK(ctx, CheckScale(scale, layout_, codes.shape()));
    Tensor* x;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, codes.shape(), &x));
    CodecPlan plan = plan_;
    plan.around_cache = WriteAroundCache(*x);

    const char* in = static_cast<const char*>(codes.data());
    const int64_t size = tensorflow::DataTypeSize(codes.dtype());
    const float* scales = scale.flat<float>().data();
    float* out = x->flat<float>().data();
    FirstPosition first_bad;
    ParallelUnderScales(
        ctx, view, scales, codes.NumElements(), 0.3,
        [&](int64_t at, int64_t count, const float* factor, int stride) {
          const int64_t bad =
              Codec().decode(plan, in + at * size, factor, stride, out + at, count);
          if (bad >= 0) first_bad.Report(at + bad);
        });
    OP_REQUIRES(
        ctx, first_bad.get() < 0,
        InvalidArgument("codes must lie in -", plan_.format.max_code(), "..",
                        plan_.format.max_code(),
                        "; the first outside is at flat index ", first_bad.get()));
  }

 private:
  CodecPlan plan_;
  ScaleLayout layout_;
};

class RequantizeOp : public OpKernel {
 public:
  explicit RequantizeOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "from_", &from_));
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "to_", &to_));
    OP_REQUIRES_OK(ctx, CheckCodeType(from_, ctx->input_type(0)));
    OP_REQUIRES_OK(ctx, CheckCodeType(to_, ctx->output_type(0)));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& codes = ctx->input(0);
    Tensor* requantized;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, codes.shape(), &requantized));
    const char* in = static_cast<const char*>(codes.data());
    char* out = static_cast<char*>(requantized->data());
    const int64_t in_size = tensorflow::DataTypeSize(codes.dtype());
    const int64_t out_size = tensorflow::DataTypeSize(requantized->dtype());
    FirstPosition first_bad;
    Parallel(ctx, codes.NumElements(), 0.3, [&](int64_t begin, int64_t end) {
      const int64_t bad = Codec().requantize(from_, to_, in + begin * in_size,
                                             out + begin * out_size, end - begin);
      if (bad >= 0) first_bad.Report(begin + bad);
    });
    OP_REQUIRES(
        ctx, first_bad.get() < 0,
        InvalidArgument("codes must lie in -", from_.max_code(), "..", from_.max_code(),
                        "; the first outside is at flat index ", first_bad.get()));
  }

 private:
  Format from_;
  Format to_;
};

class ScaleOp : public OpKernel {
 public:
  explicit ScaleOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &format_));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("power_of_two", &power_of_two_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& x = ctx->input(0);
    ScaleView view;
    OP_REQUIRES_OK(ctx, layout_.View(x.shape(), &view));
    Tensor* scale;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, layout_.ScaleShape(x.shape()), &scale));
    ScaleOf(ctx, format_, power_of_two_, x, view, scale);
  }

 private:
  Format format_;
  ScaleLayout layout_;
  bool power_of_two_;
};

class QuantizeOp : public OpKernel {
 public:
  explicit QuantizeOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetCodecPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& x = ctx->input(0);
    const Tensor& scale = ctx->input(1);
    CodecPlan plan = plan_;
    int64_t seed = 0;
    ScaleView view;
    OP_REQUIRES_OK(ctx, GetScalar(ctx, 2, "seed", &seed));
    OP_REQUIRES_OK(ctx, layout_.View(x.shape(), &view));
    OP_REQUIRES_OK(ctx, CheckScale(scale, layout_, x.shape()));
    plan.key = RandomKey(static_cast<uint64_t>(seed));
    Tensor* y;
    OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    QuantizeTensor(ctx, plan, view, x, scale, y);
  }

 private:
  CodecPlan plan_;
  ScaleLayout layout_;
};

class QuantizeDynamicOp : public OpKernel {
 public:
  explicit QuantizeDynamicOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetCodecPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("power_of_two", &power_of_two_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& x = ctx->input(0);
    CodecPlan plan = plan_;
    int64_t seed = 0;
    ScaleView view;
    OP_REQUIRES_OK(ctx, GetScalar(ctx, 1, "seed", &seed));
    OP_REQUIRES_OK(ctx, layout_.View(x.shape(), &view));
    plan.key = RandomKey(static_cast<uint64_t>(seed));
    Tensor* y;
    Tensor* scale;
    OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, layout_.ScaleShape(x.shape()), &scale));
    ScaleOf(ctx, plan.format, power_of_two_, x, view, scale);
    QuantizeTensor(ctx, plan, view, x, *scale, y);
  }

 private:
  CodecPlan plan_;
  ScaleLayout layout_;
  bool power_of_two_;
};

// Moves no data, so it also stands for devices of which this library has no code.
class QuantizeGradientOp : public OpKernel {
 public:
  explicit QuantizeGradientOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    Format format;
    ScaleLayout layout;
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &format));
    OP_REQUIRES_OK(ctx, layout.Init(ctx, "axis", true));
  }
  void Compute(OpKernelContext* ctx) override { ctx->set_output(0, ctx->input(0)); }
};

REGISTER_KERNEL_BUILDER(Name("LnsEncode").Device(DEVICE_CPU), EncodeOp);
REGISTER_KERNEL_BUILDER(Name("LnsDecode").Device(DEVICE_CPU), DecodeOp);
REGISTER_KERNEL_BUILDER(Name("LnsRequantize").Device(DEVICE_CPU), RequantizeOp);
REGISTER_KERNEL_BUILDER(Name("LnsScale").Device(DEVICE_CPU), ScaleOp);
REGISTER_KERNEL_BUILDER(Name("LnsQuantize").Device(DEVICE_CPU), QuantizeOp);
REGISTER_KERNEL_BUILDER(Name("LnsQuantizeDynamic").Device(DEVICE_CPU),
                        QuantizeDynamicOp);
REGISTER_KERNEL_BUILDER(Name("LnsQuantizeGradient").Device(DEVICE_CPU),
                        QuantizeGradientOp);
REGISTER_KERNEL_BUILDER(Name("LnsQuantizeGradient").Device(tensorflow::DEVICE_GPU),
                        QuantizeGradientOp);

}  // namespace
}  // namespace lns
