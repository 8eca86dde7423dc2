// The products of codes for XLA. What cannot be refused here, because it depends on
// values, has a harmless result that the documentation of each op states.

#include "kernels/conv_shape.h"
#include "kernels/product_op_helpers.h"
#include "xla/hlo/builder/lib/arithmetic.h"
#include "xla/product_math.h"
#include "xla/xla_op.h"

namespace lns::lowering {
namespace {

// `x` with axes of size 1 in front, up to `rank`.
XlaOp WithRank(XlaOp x, size_t rank) {
  std::vector<int64_t> dims = Dimensions(x);
  while (dims.size() < rank) dims.insert(dims.begin(), 1);
  return Reshape(x, dims);
}

// The scale at input `index` over [lead..., rows, columns], of which `vectors_axis` is
// the one along which vectors lie.
Status GetProductScale(XlaOpKernelContext* ctx, int index, const char* name,
                       TensorShape full, int vectors_axis, ProductScale* scale) {
  TensorShape shape;
  TF_RETURN_IF_ERROR(GetShape(ctx, index, &shape));
  const int missing = full.dims() - shape.dims();
  bool fits = missing >= 0 && shape.dims() != 1;
  for (int i = 0; fits && i < shape.dims(); ++i) {
    const int64_t size = shape.dim_size(i);
    fits = size == 1 || size == full.dim_size(missing + i);
  }
  if (!fits) {
    return InvalidArgument(
        name, " must be a scalar or have 1 or the full size on each axis of ",
        full.DebugString(), ", got ", shape.DebugString());
  }
  scale->scale = WithRank(ctx->Input(index), full.dims());
  const int at = vectors_axis - missing;
  if (at >= 0 && shape.dim_size(at) > 1) scale->axis = vectors_axis;
  return absl::OkStatus();
}

class MatmulLowering : public XlaOpKernel {
 public:
  MatmulLowering(OpKernelConstruction* ctx, bool with_details)
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
    const int rank = shape.output.dims();
    TensorShape a_scales = shape.lead, b_scales = shape.lead;
    a_scales.AddDim(shape.m);
    a_scales.AddDim(shape.vectors);
    b_scales.AddDim(shape.vectors);
    b_scales.AddDim(shape.n);
    ProductScale a_scale, b_scale;
    OP_REQUIRES_OK(ctx,
                   GetProductScale(ctx, 2, "a_scale", a_scales, rank - 1, &a_scale));
    OP_REQUIRES_OK(ctx,
                   GetProductScale(ctx, 3, "b_scale", b_scales, rank - 2, &b_scale));
    OP_REQUIRES(ctx, !with_details_ || (a_scale.axis < 0 && b_scale.axis < 0),
                InvalidArgument("scales must not change along K where accumulators are "
                                "asked for"));

    Operand a = OperandAt(ctx->Input(0), rank, transpose_a_ ? rank - 2 : rank - 1);
    Operand b = OperandAt(ctx->Input(1), rank, transpose_b_ ? rank - 1 : rank - 2);
    a.dims[rank - 2] = shape.m;
    b.dims[rank - 1] = shape.n;
    if (!with_details_) {
      ctx->SetOutput(0, Product(plan_, a, b, shape.k, a_scale, b_scale));
      return;
    }
    const ProductWithDetails all =
        ProductDetails(plan_, a, b, shape.k, a_scale, b_scale);
    ctx->SetOutput(0, all.product);
    ctx->SetOutput(1, all.accumulators);
    ctx->SetOutput(2, all.saturated);
    ctx->SetOutput(3, all.truncated);
  }

 private:
  // Matrices with the terms along `axis`; the last two of `dims` are 1 so far.
  static Operand OperandAt(XlaOp codes, int rank, int64_t axis) {
    codes = WithRank(codes, rank);
    std::vector<int64_t> dims = Dimensions(codes);
    dims.resize(rank, 1);
    dims[rank - 2] = dims[rank - 1] = 1;
    return {codes, axis, dims};
  }

  const bool with_details_;
  ProductPlan plan_;
  bool transpose_a_, transpose_b_;
};

class PlainMatmulLowering : public MatmulLowering {
 public:
  explicit PlainMatmulLowering(OpKernelConstruction* ctx)
      : MatmulLowering(ctx, false) {}
};

class DetailedMatmulLowering : public MatmulLowering {
 public:
  explicit DetailedMatmulLowering(OpKernelConstruction* ctx)
      : MatmulLowering(ctx, true) {}
};

class ConvLowering : public XlaOpKernel {
 public:
  explicit ConvLowering(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetProductPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.a, ctx->input_type(0)));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.b, ctx->input_type(1)));
    OP_REQUIRES_OK(ctx, attributes_.Init(ctx));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    TensorShape x_shape, kernel_shape, scale_shape;
    OP_REQUIRES_OK(ctx, GetShape(ctx, 0, &x_shape));
    OP_REQUIRES_OK(ctx, GetShape(ctx, 1, &kernel_shape));
    OP_REQUIRES_OK(ctx, GetShape(ctx, 3, &scale_shape));
    ConvShape shape;
    OP_REQUIRES_OK(ctx, shape.Init(attributes_, x_shape, kernel_shape));
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 2, "x_scale"));
    OP_REQUIRES(
        ctx, scale_shape.dims() == 0 || scale_shape == TensorShape({shape.filters}),
        InvalidArgument("kernel_scale must be a scalar or of shape [", shape.filters,
                        "], got shape ", scale_shape.DebugString()));
    if (shape.output.num_elements() == 0) {
      ctx->SetOutput(0, Broadcast(::xla::ConstantR0<float>(ctx->builder(), 0.0f),
                                  shape.output.dim_sizes()));
      return;
    }
    // Axes of the outputs: image, position, group, filter of the group; without those
    // of size 1 at the end, as loops over the last axis are the fastest.
    const int64_t k = shape.k(), groups = shape.groups;
    Operand a{PatchesOf(ctx->Input(0), shape), 2, {}};
    const int64_t positions = Dimensions(a.codes)[1];
    a.dims = {shape.images, positions, groups, 1};
    Operand b{Reshape(ctx->Input(1), {k, groups, shape.group_filters}),
              0,
              {1, 1, groups, shape.group_filters}};
    std::vector<int64_t> scale_dims = b.dims;
    if (shape.group_filters == 1) {
      for (auto* dims : {&a.dims, &b.dims, &scale_dims}) dims->pop_back();
    }
    const XlaOp x_scale =
        Reshape(ctx->Input(2), std::vector<int64_t>(scale_dims.size(), 1));
    XlaOp kernel_scale = ctx->Input(3);
    if (scale_shape.dims() == 0) {
      scale_dims.assign(scale_dims.size(), 1);
    }
    kernel_scale = Reshape(kernel_scale, scale_dims);
    const XlaOp product = Product(plan_, a, b, k, {x_scale}, {kernel_scale});
    ctx->SetOutput(0, Reshape(product, shape.output.dim_sizes()));
  }

 private:
  // [images, positions, k, groups]: what each term of each output meets.
  static XlaOp PatchesOf(XlaOp x, const ConvShape& shape) {
    XlaOp padded = PaddedInput(x, shape);
    const std::vector<int64_t> dims = Dimensions(padded);
    // Flat position of an output and of a tap in the padded input; their sum is that of
    // the element that they meet.
    std::vector<int32_t> outputs = {0}, taps = {0};
    for (int i = 0; i < kSpatialAxes; ++i) {
      const WindowAxis& axis = shape.axes[i];
      outputs = Extended(outputs, dims[1 + i], axis.outputs(), axis.stride);
      taps = Extended(taps, dims[1 + i], axis.taps, axis.dilation);
    }
    const int64_t positions = outputs.size(), count = taps.size();
    const XlaOp at = BroadcastInDim(::xla::ConstantR1<int32_t>(x.builder(), outputs),
                                    {positions, count}, {0}) +
                     BroadcastInDim(::xla::ConstantR1<int32_t>(x.builder(), taps),
                                    {positions, count}, {1});
    padded =
        Reshape(padded, {shape.images, dims[1] * dims[2] * dims[3], shape.channels});
    ::xla::GatherDimensionNumbers numbers;
    numbers.add_offset_dims(0);
    numbers.add_offset_dims(3);
    numbers.add_collapsed_slice_dims(1);
    numbers.add_start_index_map(1);
    numbers.set_index_vector_dim(2);
    XlaOp patches =
        ::xla::Gather(padded, at, numbers, {shape.images, 1, shape.channels});
    patches = Reshape(
        patches, {shape.images, positions, count, shape.groups, shape.group_channels});
    patches = Transpose(patches, {0, 1, 2, 4, 3});
    return Reshape(patches, {shape.images, positions, shape.k(), shape.groups});
  }

  static XlaOp PaddedInput(XlaOp x, const ConvShape& shape) {
    ::xla::PaddingConfig config;
    for (int i = 0; i < kSpatialAxes + 2; ++i) {
      auto* dimension = config.add_dimensions();
      dimension->set_edge_padding_low(0);
      dimension->set_edge_padding_high(0);
      dimension->set_interior_padding(0);
      if (i == 0 || i == kSpatialAxes + 1) continue;
      const WindowAxis& axis = shape.axes[i - 1];
      dimension->set_edge_padding_low(axis.low);
      dimension->set_edge_padding_high(axis.high);
      dimension->set_interior_padding(axis.input_dilation - 1);
    }
    return Pad(x, Scalar(x, 0), config);
  }

  // Flat positions with one more axis, of `size` elements, of which every `step`th.
  static std::vector<int32_t> Extended(const std::vector<int32_t>& flat, int64_t size,
                                       int64_t count, int64_t step) {
    std::vector<int32_t> result;
    for (int64_t start : flat) {
      for (int64_t i = 0; i < count; ++i) {
        result.push_back(static_cast<int32_t>(start * size + i * step));
      }
    }
    return result;
  }

  ProductPlan plan_;
  ConvAttributes attributes_;
};

LNS_REGISTER_LOWERING("LnsMatmul", PlainMatmulLowering);
LNS_REGISTER_LOWERING("LnsMatmulDetails", DetailedMatmulLowering);
LNS_REGISTER_LOWERING("LnsConv", ConvLowering);

}  // namespace
}  // namespace lns::lowering
