// CPU kernels of products of codes: check, allocate, share out the rows, call
// kernels/product_kernels.h.

#include "kernels/dispatch.h"
#include "kernels/op_helpers.h"
#include "kernels/product_kernels.h"
#include "kernels/product_op_helpers.h"
#include "tensorflow/core/util/matmul_bcast.h"

namespace lns {
namespace {

using tensorflow::DEVICE_CPU;

class MatmulOp : public OpKernel {
 public:
  MatmulOp(OpKernelConstruction* ctx, bool with_details)
      : OpKernel(ctx), with_details_(with_details) {
    OP_REQUIRES_OK(ctx, GetProductPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.a, ctx->input_type(0)));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.b, ctx->input_type(1)));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("transpose_a", &transpose_a_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("transpose_b", &transpose_b_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &a = ctx->input(0), &b = ctx->input(1);
    MatmulShape shape;
    OP_REQUIRES_OK(ctx,
                   shape.Init(plan_, a.shape(), b.shape(), transpose_a_, transpose_b_));
    ScaleGrid a_scale, b_scale;
    OP_REQUIRES_OK(ctx, a_scale.Init(ctx->input(2), "a_scale", shape.lead, shape.m,
                                     shape.vectors));
    OP_REQUIRES_OK(ctx, b_scale.Init(ctx->input(3), "b_scale", shape.lead,
                                     shape.vectors, shape.n));
    OP_REQUIRES_OK(ctx, CheckCodes(ctx, plan_.a, a, "a"));
    const bool per_vector = a_scale.column_stride() != 0 || b_scale.row_stride() != 0;
    OP_REQUIRES(ctx, !(with_details_ && per_vector),
                InvalidArgument("scales must not change along K where accumulators are "
                                "asked for"));
    Tensor *product, *accumulators = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape.output, &product));
    Counters counters;
    if (with_details_) {
      TensorShape all = shape.output;
      if (plan_.datapath.bins) all.AddDim(plan_.bins);
      OP_REQUIRES_OK(ctx, ctx->allocate_output(1, all, &accumulators));
    }
    int32_t* kept = with_details_ ? accumulators->flat<int32_t>().data() : nullptr;
    const Product run{plan_, shape, a_scale, b_scale};
    float* values = product->flat<float>().data();
    bool good = shape.output.num_elements() > 0;  // else nothing looked at b
    if (per_vector) {
      OP_REQUIRES_OK(ctx, run.PerVector(ctx, a, b, values, &good));
    } else {
      OP_REQUIRES_OK(ctx, run.Whole(ctx, a, b, values, kept,
                                    with_details_ ? &counters : nullptr, &good));
    }
    if (!good) OP_REQUIRES_OK(ctx, CheckCodes(ctx, plan_.b, b, "b"));
    if (!with_details_) return;
    Tensor *saturated, *truncated;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(2, {}, &saturated));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(3, {}, &truncated));
    saturated->scalar<int64_t>()() = counters.saturated;
    truncated->scalar<int64_t>()() = counters.truncated;
  }

 private:
  const bool with_details_;
  ProductPlan plan_;
  bool transpose_a_, transpose_b_;
};

class PlainMatmulOp : public MatmulOp {
 public:
  explicit PlainMatmulOp(OpKernelConstruction* ctx) : MatmulOp(ctx, false) {}
};

class DetailedMatmulOp : public MatmulOp {
 public:
  explicit DetailedMatmulOp(OpKernelConstruction* ctx) : MatmulOp(ctx, true) {}
};

REGISTER_KERNEL_BUILDER(Name("LnsMatmul").Device(DEVICE_CPU), PlainMatmulOp);
REGISTER_KERNEL_BUILDER(Name("LnsMatmulDetails").Device(DEVICE_CPU), DetailedMatmulOp);

}  // namespace
}  // namespace lns
