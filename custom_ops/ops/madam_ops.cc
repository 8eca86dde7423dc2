// Signatures of the optimizer's ops. S is the weight's shape.

#include "ops/shapes.h"
#include "tensorflow/core/framework/op.h"

namespace lns {
namespace {

// A gradient merges with the shape behind the handle of the weight, and of its moment.
Status CheckUpdate(InferenceContext* c, int grad, int moment) {
  ShapeHandle shape = HandleShape(c, 0);
  TF_RETURN_IF_ERROR(c->Merge(shape, c->input(grad), &shape));
  return c->Merge(shape, HandleShape(c, moment), &shape);
}

REGISTER_OP("LnsApplyMadam")
    .Input("weight: resource")
    .Input("scale: float")
    .Input("second_moment: resource")
    .Input("moment_exponent: resource")
    .Input("grad: float")
    .Input("grad_scale: float")
    .Input("learning_rate: float")
    .Input("weight_decay: float")
    .Input("step: int64")
    .Input("seed: int64")
    .Input("cap: int32")
    .Input("floor: int32")
    .Output("nonfinite: int64")
    .Attr("Tweight: {int8, int16, float}")
    .Attr("Tmoment: {int8, float}")
    .Attr("bits: int")
    .Attr("base_factor: int")
    .Attr("grad_bits: int = 0")
    .Attr("grad_base_factor: int = 1")
    .Attr("grad_axis: list(int) = []")
    .Attr("grad_underflow: {'clamp', 'flush'} = 'clamp'")
    .Attr("beta: float = 0.999")
    .Attr("g_bound: float = 10.0")
    .Attr("rounding: {'nearest', 'stochastic'} = 'nearest'")
    .Attr("round_gradient: bool = false")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "", &format));
      int grad_bits = 0;
      TF_RETURN_IF_ERROR(c->GetAttr("grad_bits", &grad_bits));
      if (grad_bits != 0) {
        TF_RETURN_IF_ERROR(GetFormat(c, "grad_", &format));
        ShapeHandle scale;
        TF_RETURN_IF_ERROR(ScaleShape(c, c->input(4), "grad_", &scale));
        TF_RETURN_IF_ERROR(c->Merge(scale, c->input(5), &scale));
      }
      TF_RETURN_IF_ERROR(Scalars(c, 0, 3));
      TF_RETURN_IF_ERROR(Scalars(c, 6, 11));
      TF_RETURN_IF_ERROR(CheckUpdate(c, 4, 2));
      c->set_output(0, c->Scalar());
      return absl::OkStatus();
    })
    .Doc(R"(
One LNS-Madam step on one weight, in place: tf_lns.reference.madam_step.

A learning rate or weight decay that is not finite, a step below 1, an invalid scale, a cap or floor
above the largest exponent are refused with InvalidArgument; under XLA, which cannot refuse values,
nothing is written.

weight: Variable of int8 or int16 codes; or of float32 values on the grid, which are encoded,
  moved and decoded (values off the grid move to it).
scale: Scale of the storage format, a scalar.
second_moment: Variable v, float32; or int8, the one-byte second moment.
moment_exponent: int32 scalar variable, the exponent of a one-byte second moment (-2^31 before the
  first gradient). With a float32 second moment any resource handle; it is not looked at.
grad: Gradient; non-finite elements count as 0.
grad_scale: Scale of the gradient's own format where grad_bits > 0, of the shape that grad_axis
  says; else a scalar that is not looked at.
learning_rate: Octaves per unit of the normalised gradient.
weight_decay: Decoupled decay.
step: Number of this step, from 1.
seed: Seed of stochastic rounding and of the one-byte second moment.
cap: Largest exponent that a weight may grow to; -1 for the top of the range.
floor: Exponent at which a weight changes sign; -1 for fixed signs.
nonfinite: Number of gradient elements that were not finite.
grad_bits: Bits of the format the gradient is quantized to first; 0 for none.
round_gradient: Round the normalised gradient to integers, as the authors' code does.
)");

REGISTER_OP("LnsApplyMadamAdditive")
    .Input("weight: resource")
    .Input("second_moment: resource")
    .Input("grad: float")
    .Input("learning_rate: float")
    .Input("weight_decay: float")
    .Input("step: int64")
    .Output("nonfinite: int64")
    .Attr("beta: float = 0.999")
    .Attr("g_bound: float = 10.0")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) -> Status {
      TF_RETURN_IF_ERROR(Scalars(c, 0, 1));
      TF_RETURN_IF_ERROR(Scalars(c, 3, 5));
      TF_RETURN_IF_ERROR(CheckUpdate(c, 2, 1));
      c->set_output(0, c->Scalar());
      return absl::OkStatus();
    })
    .Doc(R"(
The additive step of float32 variables that are no LNS weights (biases, norm scales), with the same
normalised gradient: tf_lns.reference.additive_step. A learning rate or weight decay that is not
finite and a step below 1 are refused with InvalidArgument; under XLA nothing is written.
)");

}  // namespace
}  // namespace lns
