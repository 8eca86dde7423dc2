// Products of codes for XLA: a code outside of its format counts as 0, a scale that is
// none as 1.

#include "kernels/product_op_helpers.h"
#include "tensorflow/core/util/matmul_bcast.h"
#include "xla/product_math.h"
#include "xla/xla_op.h"

namespace lns::lowering {
namespace {

// [..., rows, columns] broadcast over `lead` and made [batches, rows, columns].
XlaOp Batched(XlaOp x, const TensorShape& lead) {
  const std::vector<int64_t> have = Dimensions(x);
  std::vector<int64_t> dims, places;
  for (int i = 0; i < lead.dims(); ++i) dims.push_back(lead.dim_size(i));
  const int rank = static_cast<int>(have.size()), missing = lead.dims() + 2 - rank;
  dims.push_back(have[rank - 2]);
  dims.push_back(have[rank - 1]);
  for (int i = 0; i < rank; ++i) places.push_back(missing + i);
  return Reshape(BroadcastInDim(x, dims, places),
                 {lead.num_elements(), have[rank - 2], have[rank - 1]});
}

class MatmulOp : public XlaOpKernel {
 public:
  MatmulOp(OpKernelConstruction* ctx, bool with_details)
      : XlaOpKernel(ctx), with_details_(with_details) {
    OP_REQUIRES_OK(ctx, GetProductPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.a, ctx->input_type(0)));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.b, ctx->input_type(1)));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("transpose_a", &transpose_a_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("transpose_b", &transpose_b_));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    TensorShape a_shape, b_shape;
    OP_REQUIRES_OK(ctx, GetShape(ctx, 0, &a_shape));
    OP_REQUIRES_OK(ctx, GetShape(ctx, 1, &b_shape));
    MatmulShape shape;
    OP_REQUIRES_OK(ctx,
                   shape.Init(plan_, a_shape, b_shape, transpose_a_, transpose_b_));
    XlaOp a_scale, b_scale;
    OP_REQUIRES_OK(
        ctx, GetScaleGrid(ctx, 2, "a_scale", shape, shape.m, shape.vectors, &a_scale));
    OP_REQUIRES_OK(
        ctx, GetScaleGrid(ctx, 3, "b_scale", shape, shape.vectors, shape.n, &b_scale));
    const bool per_vector = Dimensions(a_scale)[2] > 1 || Dimensions(b_scale)[1] > 1;
    OP_REQUIRES(ctx, !(with_details_ && per_vector),
                InvalidArgument("scales must not change along K where accumulators are "
                                "asked for"));
    const XlaOp a = Matrix(ctx->Input(0), plan_.a, transpose_a_, shape.lead);
    const XlaOp b = Matrix(ctx->Input(1), plan_.b, transpose_b_, shape.lead);
    const ProductResult result = Matmul(plan_, a, b, a_scale, b_scale, with_details_);
    ctx->SetOutput(0, Reshape(result.values, shape.output.dim_sizes()));
    if (!with_details_) return;
    TensorShape all = shape.output;
    if (plan_.datapath.bins) all.AddDim(plan_.bins);
    ctx->SetOutput(1, Reshape(result.accumulators, all.dim_sizes()));
    ctx->SetOutput(2, result.saturated);
    ctx->SetOutput(3, result.truncated);
  }

 private:
  static XlaOp Matrix(XlaOp codes, const Format& format, bool transpose,
                      const TensorShape& lead) {
    const XlaOp x = Batched(ZeroOutside(format, ToS32(codes)), lead);
    return transpose ? Transpose(x, {0, 2, 1}) : x;
  }

  // The scale at input `index`, valid, as [batches or 1, ...]: see ScaleGrid.
  static Status GetScaleGrid(XlaOpKernelContext* ctx, int index, const char* name,
                             const MatmulShape& shape, int64_t rows, int64_t columns,
                             XlaOp* scale) {
    TensorShape actual;
    TF_RETURN_IF_ERROR(GetShape(ctx, index, &actual));
    TF_RETURN_IF_ERROR(CheckScaleShape(actual, name, shape.lead, rows, columns));
    const XlaOp valid = ValidScale(ctx->Input(index));
    *scale = Batched(actual.dims() == 0 ? Reshape(valid, {1, 1}) : valid, shape.lead);
    return absl::OkStatus();
  }

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

LNS_REGISTER_LOWERING("LnsMatmul", PlainMatmulOp);
LNS_REGISTER_LOWERING("LnsMatmulDetails", DetailedMatmulOp);

}  // namespace
}  // namespace lns::lowering
