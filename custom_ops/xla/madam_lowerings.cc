// The optimizer's ops for XLA. Where the CPU kernel would refuse values (a learning
// rate that is not finite, a step below 1, an invalid scale), XLA cannot: nothing is
// written.

#include <cmath>

#include "xla/madam_math.h"
#include "xla/xla_op.h"

namespace lns::lowering {
namespace {

using ::tensorflow::DT_FLOAT;
using ::tensorflow::DT_INT32;
using ::tensorflow::DT_INT8;

// The variable behind input `index`, of the gradient's shape.
Status Read(XlaOpKernelContext* ctx, int index, DataType dtype, const char* name,
            const TensorShape& expected, XlaOp* value) {
  TensorShape shape;
  TF_RETURN_IF_ERROR(ctx->ReadVariableInput(index, dtype, &shape, value));
  if (shape == expected) return absl::OkStatus();
  return InvalidArgument(name, " must have shape ", expected.DebugString(), ", got ",
                         shape.DebugString());
}

// Learning rate, weight decay and step, at inputs first.. Returns in `valid` whether
// the step may be taken.
Status GetStepInputs(XlaOpKernelContext* ctx, int first, StepPlan* plan, XlaOp* valid) {
  TF_RETURN_IF_ERROR(CheckScalar(ctx, first, "learning_rate"));
  TF_RETURN_IF_ERROR(CheckScalar(ctx, first + 1, "weight_decay"));
  TF_RETURN_IF_ERROR(CheckScalar(ctx, first + 2, "step"));
  plan->learning_rate = ctx->Input(first);
  plan->weight_decay = ctx->Input(first + 1);
  const XlaOp step = ctx->Input(first + 2), one = Scalar(step, 1);
  plan->corrected = BiasCorrection(plan->beta, Max(step, one));
  *valid =
      And(IsFinite(plan->learning_rate), IsFinite(plan->weight_decay), Ge(step, one));
  return absl::OkStatus();
}

// Writes `value` where the step may be taken.
Status Write(XlaOpKernelContext* ctx, int index, DataType dtype, XlaOp valid,
             XlaOp value, XlaOp old) {
  return ctx->AssignVariable(index, dtype, Select(valid, value, old));
}

class ApplyMadamOp : public XlaOpKernel {
 public:
  explicit ApplyMadamOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &plan_.format));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tweight", &weight_type_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tmoment", &moment_type_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("round_gradient", &plan_.round_gradient));
    OP_REQUIRES_OK(ctx, GetMadamAttributes(ctx, &plan_.beta, &plan_.g_bound));
    if (weight_type_ != DT_FLOAT) {
      OP_REQUIRES_OK(ctx, CheckCodeType(plan_.format, weight_type_));
    }
    OP_REQUIRES_OK(ctx, GetRounding(ctx, &plan_.rounding));
    OP_REQUIRES_OK(
        ctx, GetGradientPlan(ctx, &quantize_gradient_, &grad_plan_, &grad_layout_));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    StepPlan plan = plan_;
    TensorShape shape;
    XlaOp valid;
    OP_REQUIRES_OK(ctx, GetShape(ctx, 4, &shape));
    OP_REQUIRES_OK(ctx, GetStepInputs(ctx, 6, &plan, &valid));
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 1, "scale"));
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 9, "seed"));
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 10, "cap"));
    OP_REQUIRES_OK(ctx, CheckScalar(ctx, 11, "floor"));
    const XlaOp scale = ctx->Input(1), cap = ctx->Input(10), floor = ctx->Input(11);
    const XlaOp top = Scalar(cap, plan.format.max_exponent());
    plan.seed = ctx->Input(9);
    plan.cap = Select(Lt(cap, Scalar(cap, 0)), top, cap);
    plan.floor = Max(floor, Scalar(floor, -1));
    valid = And(valid, IsValidScale(scale), And(Le(cap, top), Le(floor, top)));

    // Counted before Q_G, which lets them pass: the count is a loop of its own.
    XlaOp gradient = ctx->Input(4);
    ctx->SetOutput(0, CountNonfinite(gradient));
    if (quantize_gradient_) {
      XlaOp grad_scale;
      OP_REQUIRES_OK(ctx, GetScale(ctx, 5, grad_layout_, shape, &grad_scale));
      const XlaOp bad = MaxOfAll(Not(IsValidScale(ctx->Input(5))));
      valid = And(valid, Eq(bad, Scalar(bad, 0u)));
      gradient = Quantize(grad_plan_, gradient, grad_scale, XlaOp());
    }
    gradient = FiniteGradient(gradient);

    XlaOp weight, moment, exponent, g_hat;
    OP_REQUIRES_OK(ctx, Read(ctx, 0, weight_type_, "weight", shape, &weight));
    OP_REQUIRES_OK(ctx, Read(ctx, 2, moment_type_, "second_moment", shape, &moment));
    if (moment_type_ == DT_INT8) {
      OP_REQUIRES_OK(
          ctx, Read(ctx, 3, DT_INT32, "moment_exponent", TensorShape(), &exponent));
      CompactMoment moved = {ToS32(moment), exponent};
      g_hat = NormalizedGradientCompact(plan, gradient, &moved);
      const XlaOp bytes = ::xla::ConvertElementType(moved.k, ::xla::S8);
      OP_REQUIRES_OK(ctx, Write(ctx, 2, DT_INT8, valid, bytes, moment));
      OP_REQUIRES_OK(ctx, Write(ctx, 3, DT_INT32, valid, moved.exponent, exponent));
    } else {
      XlaOp moved = moment;
      g_hat = NormalizedGradient(plan, gradient, &moved);
      OP_REQUIRES_OK(ctx, Write(ctx, 2, DT_FLOAT, valid, moved, moment));
    }

    XlaOp moved;
    if (weight_type_ == DT_FLOAT) {
      const XlaOp grid = ValidScale(scale);
      const XlaOp codes = Encode(CodecPlan(plan.format), weight, grid, XlaOp());
      moved = Decode(plan.format, MadamStep(plan, g_hat, codes), grid);
    } else {
      moved = ToCodeType(plan.format, MadamStep(plan, g_hat, ToS32(weight)));
    }
    OP_REQUIRES_OK(ctx, Write(ctx, 0, weight_type_, valid, moved, weight));
  }

 private:
  StepPlan plan_;
  DataType weight_type_;
  DataType moment_type_;
  bool quantize_gradient_;
  CodecPlan grad_plan_;
  ScaleLayout grad_layout_;
};

class ApplyMadamAdditiveOp : public XlaOpKernel {
 public:
  explicit ApplyMadamAdditiveOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetMadamAttributes(ctx, &plan_.beta, &plan_.g_bound));
  }

  void Compile(XlaOpKernelContext* ctx) override {
    StepPlan plan = plan_;
    TensorShape shape;
    XlaOp valid, weight, moment;
    OP_REQUIRES_OK(ctx, GetShape(ctx, 2, &shape));
    OP_REQUIRES_OK(ctx, GetStepInputs(ctx, 3, &plan, &valid));
    OP_REQUIRES_OK(ctx, Read(ctx, 0, DT_FLOAT, "weight", shape, &weight));
    OP_REQUIRES_OK(ctx, Read(ctx, 1, DT_FLOAT, "second_moment", shape, &moment));
    const XlaOp gradient = ctx->Input(2);
    ctx->SetOutput(0, CountNonfinite(gradient));
    XlaOp moved = moment;
    const XlaOp g_hat = NormalizedGradient(plan, FiniteGradient(gradient), &moved);
    OP_REQUIRES_OK(ctx, Write(ctx, 1, DT_FLOAT, valid, moved, moment));
    OP_REQUIRES_OK(
        ctx, Write(ctx, 0, DT_FLOAT, valid, AdditiveStep(plan, g_hat, weight), weight));
  }

 private:
  StepPlan plan_;
};

LNS_REGISTER_LOWERING("LnsApplyMadam", ApplyMadamOp);
LNS_REGISTER_LOWERING("LnsApplyMadamAdditive", ApplyMadamAdditiveOp);

}  // namespace
}  // namespace lns::lowering
