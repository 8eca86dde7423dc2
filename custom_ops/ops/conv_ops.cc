// Signature of convolutions of codes on a datapath.

#include "ops/conv_attributes.h"
#include "ops/product_attributes.h"
#include "tensorflow/core/framework/op.h"

namespace lns {
namespace {

// InvalidArgument unless the channels of x and kernel fit, where they are known.
Status CheckChannels(InferenceContext* c, ShapeHandle x, ShapeHandle kernel,
                     int64_t groups) {
  const DimensionHandle have = c->Dim(x, 4), own = c->Dim(kernel, 3);
  if (c->ValueKnown(have) && c->ValueKnown(own) &&
      c->Value(have) != c->Value(own) * groups) {
    return InvalidArgument("x must have ", groups,
                           " times the channels of kernel, got ", c->DebugString(x),
                           " and ", c->DebugString(kernel));
  }
  const DimensionHandle out = c->Dim(kernel, 4);
  if (c->ValueKnown(out) && c->Value(out) % groups != 0) {
    return InvalidArgument("groups must divide the output channels of kernel, got ",
                           groups, " and ", c->DebugString(kernel));
  }
  return absl::OkStatus();
}

Status CheckConvScales(InferenceContext* c, ShapeHandle kernel) {
  ShapeHandle unused;
  DimensionHandle merged;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 0, &unused));
  TF_RETURN_IF_ERROR(c->WithRankAtMost(c->input(3), 1, &unused));
  if (!c->RankKnown(c->input(3)) || c->Rank(c->input(3)) == 0) return absl::OkStatus();
  if (c->Merge(c->Dim(c->input(3), 0), c->Dim(kernel, 4), &merged).ok()) {
    return absl::OkStatus();
  }
  return InvalidArgument("kernel_scale must be a scalar or [O], got ",
                         c->DebugString(c->input(3)), " for kernel ",
                         c->DebugString(kernel));
}

REGISTER_OP("LnsConv")
    .Input("x: Ta")
    .Input("kernel: Tb")
    .Input("x_scale: float")
    .Input("kernel_scale: float")
    .Output("result: float")
    .Attr("Ta: {int8, int16}")
    .Attr("Tb: {int8, int16}")
    .Attr("a_bits: int")
    .Attr("b_bits: int")
    .Attr("base_factor: int")
    .Attr("strides: list(int)")
    .Attr("padding: {'VALID', 'SAME', 'EXPLICIT'}")
    .Attr("explicit_paddings: list(int) = []")
    .Attr("dilations: list(int)")
    .Attr("input_dilations: list(int)")
    .Attr("groups: int = 1")
    .LNS_DATAPATH_ATTRS
    .SetShapeFn([](InferenceContext* c) -> Status {
      Datapath datapath;
      ConvAttributes attributes;
      TF_RETURN_IF_ERROR(GetDatapath(c, &datapath));
      TF_RETURN_IF_ERROR(CheckProductFormats(c));
      TF_RETURN_IF_ERROR(attributes.Init(c));
      ShapeHandle x, kernel;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 5, &x));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 5, &kernel));
      TF_RETURN_IF_ERROR(CheckChannels(c, x, kernel, attributes.groups));
      TF_RETURN_IF_ERROR(CheckConvScales(c, kernel));
      std::vector<DimensionHandle> result = {c->Dim(x, 0)};
      for (int i = 0; i < kSpatialAxes; ++i) {
        const DimensionHandle size = c->Dim(x, 1 + i), taps = c->Dim(kernel, i);
        DimensionHandle outputs = c->UnknownDim();
        if (c->ValueKnown(size) && c->ValueKnown(taps)) {
          outputs =
              c->MakeDim(attributes.Axis(i, c->Value(size), c->Value(taps)).outputs());
        }
        result.push_back(outputs);
      }
      result.push_back(c->Dim(kernel, 4));
      c->set_output(0, c->MakeShape(result));
      return absl::OkStatus();
    })
    .Doc(R"(
A convolution of codes as a datapath of hardware computes it, bit for bit: the product of
the patches of x and the flattened filter, terms in the order of the filter's axes
[taps..., C / groups]. A position of padding is code 0 and has its place in the vector.

x: Codes [N, D, H, W, C]. A code outside of its format is refused with InvalidArgument
  (under XLA it counts as 0).
kernel: Codes [taps..., C / groups, O].
x_scale: A scalar. Scales are finite normals, else InvalidArgument (under XLA they count
  as 1).
kernel_scale: A scalar, or [O].
explicit_paddings: With padding EXPLICIT the positions before and after each axis;
  negative ones cut off.
input_dilations: Steps between two elements of x, with padding in between. SAME is that of
  the dilated x.
result: [N, outputs..., O]; empty where the filter does not fit.
)");

}  // namespace
}  // namespace lns
