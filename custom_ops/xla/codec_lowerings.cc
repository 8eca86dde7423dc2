// The codec ops for XLA. What cannot be refused here, because it depends on values, has
// a harmless result that the documentation of each op states.

#include "xla/xla_op.h"

namespace lns::lowering {
namespace {

class EncodeOp : public XlaOpKernel {
 public:
  explicit EncodeOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetCodecPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, CheckCodeType(plan_.format, ctx->output_type(0)));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    TensorShape shape;
    XlaOp scale;
    OP_REQUIRES_OK(ctx, GetShape(ctx, 0, &shape));
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 2, "seed"));
    OP_REQUIRES_OK(ctx, GetScale(ctx, 1, layout_, shape, &scale));
    const XlaOp codes = Encode(plan_, ctx->Input(0), scale, ctx->Input(2));
    ctx->SetOutput(0, ToCodeType(plan_.format, codes));
  }

 private:
  CodecPlan plan_;
  ScaleLayout layout_;
};

class DecodeOp : public XlaOpKernel {
 public:
  explicit DecodeOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &format_));
    OP_REQUIRES_OK(ctx, CheckCodeType(format_, ctx->input_type(0)));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    TensorShape shape;
    XlaOp scale;
    OP_REQUIRES_OK(ctx, GetShape(ctx, 0, &shape));
    OP_REQUIRES_OK(ctx, GetScale(ctx, 1, layout_, shape, &scale));
    const XlaOp codes = ZeroOutside(format_, ToS32(ctx->Input(0)));
    ctx->SetOutput(0, Decode(format_, codes, scale));
  }

 private:
  Format format_;
  ScaleLayout layout_;
};

class RequantizeOp : public XlaOpKernel {
 public:
  explicit RequantizeOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "from_", &from_));
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "to_", &to_));
    OP_REQUIRES_OK(ctx, CheckCodeType(from_, ctx->input_type(0)));
    OP_REQUIRES_OK(ctx, CheckCodeType(to_, ctx->output_type(0)));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    const XlaOp codes = ZeroOutside(from_, ToS32(ctx->Input(0)));
    ctx->SetOutput(0, ToCodeType(to_, Requantize(from_, to_, codes)));
  }

 private:
  Format from_;
  Format to_;
};

class ScaleOp : public XlaOpKernel {
 public:
  explicit ScaleOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &format_));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("power_of_two", &power_of_two_));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    TensorShape shape;
    ScaleView view;
    OP_REQUIRES_OK(ctx, GetShape(ctx, 0, &shape));
    OP_REQUIRES_OK(ctx, layout_.View(shape, &view));
    ctx->SetOutput(0, ScaleOf(ctx->Input(0), format_, layout_.axis, view.vector_size,
                              power_of_two_));
  }

 private:
  Format format_;
  ScaleLayout layout_;
  bool power_of_two_;
};

class QuantizeOp : public XlaOpKernel {
 public:
  explicit QuantizeOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetCodecPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    TensorShape shape;
    XlaOp scale;
    OP_REQUIRES_OK(ctx, GetShape(ctx, 0, &shape));
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 2, "seed"));
    OP_REQUIRES_OK(ctx, GetScale(ctx, 1, layout_, shape, &scale));
    ctx->SetOutput(0, Quantize(plan_, ctx->Input(0), scale, ctx->Input(2)));
  }

 private:
  CodecPlan plan_;
  ScaleLayout layout_;
};

class QuantizeDynamicOp : public XlaOpKernel {
 public:
  explicit QuantizeDynamicOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetCodecPlan(ctx, &plan_));
    OP_REQUIRES_OK(ctx, layout_.Init(ctx, "axis", true));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("power_of_two", &power_of_two_));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    TensorShape shape;
    ScaleView view;
    OP_REQUIRES_OK(ctx, GetShape(ctx, 0, &shape));
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 1, "seed"));
    OP_REQUIRES_OK(ctx, layout_.View(shape, &view));
    const XlaOp x = ctx->Input(0);
    const XlaOp scale =
        ScaleOf(x, plan_.format, layout_.axis, view.vector_size, power_of_two_);
    const XlaOp expanded =
        ExpandScale(scale, shape.dim_sizes(), layout_.axis, view.vector_size);
    ctx->SetOutput(0, Quantize(plan_, x, expanded, ctx->Input(1)));
    ctx->SetOutput(1, scale);
  }

 private:
  CodecPlan plan_;
  ScaleLayout layout_;
  bool power_of_two_;
};

class QuantizeGradientOp : public XlaOpKernel {
 public:
  explicit QuantizeGradientOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    Format format;
    ScaleLayout layout;
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &format));
    OP_REQUIRES_OK(ctx, layout.Init(ctx, "axis", true));
  }
  void Compile(XlaOpKernelContext* ctx) override { ctx->SetOutput(0, ctx->Input(0)); }
};

LNS_REGISTER_LOWERING("LnsEncode", EncodeOp);
LNS_REGISTER_LOWERING("LnsDecode", DecodeOp);
LNS_REGISTER_LOWERING("LnsRequantize", RequantizeOp);
LNS_REGISTER_LOWERING("LnsScale", ScaleOp);
LNS_REGISTER_LOWERING("LnsQuantize", QuantizeOp);
LNS_REGISTER_LOWERING("LnsQuantizeDynamic", QuantizeDynamicOp);
LNS_REGISTER_LOWERING("LnsQuantizeGradient", QuantizeGradientOp);

// --- An integer weight --------------------------------------------------------------

class ReadVariableOp : public XlaOpKernel {
 public:
  explicit ReadVariableOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &stored_));
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "read_", &seen_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tcode", &dtype_));
    OP_REQUIRES_OK(ctx, CheckCodeType(stored_, dtype_));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    TensorShape shape;
    XlaOp stored;
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 1, "scale"));
    OP_REQUIRES_OK(ctx, ctx->ReadVariableInput(0, dtype_, &shape, &stored));
    XlaOp codes = ClampOutside(stored_, ToS32(stored));
    XlaOp scale = ValidScale(ctx->Input(1));
    if (seen_.bits != stored_.bits || seen_.base_factor != stored_.base_factor) {
      codes = Requantize(stored_, seen_, codes);
      scale = RequantizeScale(scale, stored_, seen_);
    }
    ctx->SetOutput(0, Decode(seen_, codes, scale));
  }

 private:
  Format stored_;
  Format seen_;
  DataType dtype_;
};

class AssignVariableOp : public XlaOpKernel {
 public:
  explicit AssignVariableOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    Format format;
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &format));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tcode", &dtype_));
    OP_REQUIRES_OK(ctx, CheckCodeType(format, dtype_));
    plan_ = CodecPlan(format);
    OP_REQUIRES_OK(ctx, GetRounding(ctx, &plan_.rounding));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    TensorShape shape, value_shape;
    XlaOp stored;
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 1, "scale"));
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 3, "seed"));
    OP_REQUIRES_OK(ctx, ctx->ReadVariableInput(0, dtype_, &shape, &stored));
    OP_REQUIRES_OK(ctx, GetShape(ctx, 2, &value_shape));
    OP_REQUIRES(
        ctx, shape == value_shape,
        InvalidArgument("value must have the weight's shape ", shape.DebugString(),
                        ", got ", value_shape.DebugString()));
    const XlaOp scale = ctx->Input(1), value = ctx->Input(2);
    const XlaOp codes = ToCodeType(
        plan_.format, Encode(plan_, value, ValidScale(scale), ctx->Input(3)));
    const XlaOp refused = Or(IsNan(value), Not(IsValidScale(scale)));
    OP_REQUIRES_OK(ctx, ctx->AssignVariable(0, dtype_, Select(refused, stored, codes)));
  }

 private:
  CodecPlan plan_;
  DataType dtype_;
};

LNS_REGISTER_LOWERING("LnsReadVariable", ReadVariableOp);
LNS_REGISTER_LOWERING("LnsAssignVariable", AssignVariableOp);

}  // namespace
}  // namespace lns::lowering
