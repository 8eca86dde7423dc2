// CPU kernels that read and write an integer weight.

#include "kernels/codec_kernels.h"
#include "kernels/dispatch.h"
#include "kernels/op_helpers.h"
#include "kernels/resource_helpers.h"

namespace lns {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::mutex_lock;
using tensorflow::tf_shared_lock;

class ReadVariableOp : public OpKernel {
 public:
  explicit ReadVariableOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    Format seen;
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &stored_));
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "read_", &seen));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tcode", &dtype_));
    OP_REQUIRES_OK(ctx, CheckCodeType(stored_, dtype_));
    plan_ = CodecPlan(seen);
    same_ = seen.bits == stored_.bits && seen.base_factor == stored_.base_factor;
  }

  void Compute(OpKernelContext* ctx) override {
    float scale = 0.0f;
    OP_REQUIRES_OK(ctx, GetWeightScale(ctx, 1, &scale));
    tensorflow::core::RefCountPtr<tensorflow::Var> codes;
    OP_REQUIRES_OK(ctx, LookUp(ctx, 0, dtype_, "codes", &codes));
    tf_shared_lock lock(*codes->mu());
    const Tensor& stored = *codes->tensor();
    Tensor* value;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, stored.shape(), &value));
    if (!same_) scale = RequantizeScale(scale, stored_, plan_.format);
    OP_REQUIRES(
        ctx, IsValidScale(scale),
        InvalidArgument("scale ", scale, " overflows in the format that is read"));
    const char* in = static_cast<const char*>(stored.data());
    const int64_t size = tensorflow::DataTypeSize(dtype_);
    float* out = value->flat<float>().data();
    CodecPlan plan = plan_;
    plan.around_cache = WriteAroundCache(*value);
    Parallel(ctx, stored.NumElements(), 0.3, [&](int64_t begin, int64_t end) {
      Codec().read(stored_, plan, in + begin * size, scale, out + begin, end - begin);
    });
  }

 private:
  Format stored_;
  CodecPlan plan_;
  DataType dtype_;
  bool same_;
};

class AssignVariableOp : public OpKernel {
 public:
  explicit AssignVariableOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    Format format;
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &format));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tcode", &dtype_));
    OP_REQUIRES_OK(ctx, CheckCodeType(format, dtype_));
    plan_ = CodecPlan(format);
    OP_REQUIRES_OK(ctx, GetRounding(ctx, &plan_.rounding));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& value = ctx->input(2);
    float scale = 0.0f;
    int64_t seed = 0;
    OP_REQUIRES_OK(ctx, GetWeightScale(ctx, 1, &scale));
    OP_REQUIRES_OK(ctx, GetScalar(ctx, 3, "seed", &seed));
    CodecPlan plan = plan_;
    plan.key = RandomKey(static_cast<uint64_t>(seed));
    tensorflow::core::RefCountPtr<tensorflow::Var> codes;
    OP_REQUIRES_OK(ctx, LookUp(ctx, 0, dtype_, "codes", &codes));
    {
      tf_shared_lock lock(*codes->mu());
      OP_REQUIRES(ctx, codes->tensor()->shape() == value.shape(),
                  InvalidArgument("value must have the weight's shape ",
                                  codes->tensor()->shape().DebugString(), ", got ",
                                  value.shape().DebugString()));
    }
    // Encode into fresh memory first: a refused value leaves the weight as it was.
    Tensor encoded;
    OP_REQUIRES_OK(ctx, ctx->allocate_temp(dtype_, value.shape(), &encoded));
    const float* in = value.flat<float>().data();
    char* out = static_cast<char*>(encoded.data());
    const int64_t size = tensorflow::DataTypeSize(dtype_);
    FirstPosition first_nan;
    Parallel(ctx, value.NumElements(), 0.5, [&](int64_t begin, int64_t end) {
      const int64_t nan = Codec().encode(plan, in + begin, &scale, 0, begin,
                                         out + begin * size, end - begin);
      if (nan >= 0) first_nan.Report(begin + nan);
    });
    OP_REQUIRES(
        ctx, first_nan.get() < 0,
        InvalidArgument("value must not hold NaN; the first one is at flat index ",
                        first_nan.get()));
    mutex_lock lock(*codes->mu());
    *codes->tensor() = encoded;
  }

 private:
  CodecPlan plan_;
  DataType dtype_;
};

REGISTER_KERNEL_BUILDER(Name("LnsReadVariable").Device(DEVICE_CPU), ReadVariableOp);
REGISTER_KERNEL_BUILDER(Name("LnsAssignVariable").Device(DEVICE_CPU), AssignVariableOp);

}  // namespace
}  // namespace lns
