// Signatures of products of codes on a datapath.

#include "ops/product_attributes.h"
#include "tensorflow/core/framework/op.h"

namespace lns {
namespace {

#define LNS_MATMUL_ATTRS                 \
  Attr("Ta: {int8, int16}")              \
      .Attr("Tb: {int8, int16}")         \
      .Attr("a_bits: int")               \
      .Attr("b_bits: int")               \
      .Attr("base_factor: int")          \
      .Attr("transpose_a: bool = false") \
      .Attr("transpose_b: bool = false") \
      .LNS_DATAPATH_ATTRS

// The shape of a product of matrices.
Status MatmulShape(InferenceContext* c, ShapeHandle* result) {
  TF_RETURN_IF_ERROR(CheckProductFormats(c));
  ShapeHandle a, b, a_lead, b_lead, lead;
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 2, &a));
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(1), 2, &b));
  if (!c->RankKnown(a) || !c->RankKnown(b)) {
    *result = c->UnknownShape();
    return absl::OkStatus();
  }
  bool transpose_a, transpose_b;
  TF_RETURN_IF_ERROR(c->GetAttr("transpose_a", &transpose_a));
  TF_RETURN_IF_ERROR(c->GetAttr("transpose_b", &transpose_b));
  const DimensionHandle a_k = c->Dim(a, transpose_a ? -2 : -1);
  const DimensionHandle b_k = c->Dim(b, transpose_b ? -1 : -2);
  DimensionHandle merged;
  if (!c->Merge(a_k, b_k, &merged).ok()) {
    return InvalidArgument("a and b do not agree in K: ", c->DebugString(a), " and ",
                           c->DebugString(b));
  }
  TF_RETURN_IF_ERROR(c->Subshape(a, 0, -2, &a_lead));
  TF_RETURN_IF_ERROR(c->Subshape(b, 0, -2, &b_lead));
  TF_RETURN_IF_ERROR(tensorflow::shape_inference::BroadcastBinaryOpOutputShapeFnHelper(
      c, a_lead, b_lead, true, &lead));
  return c->Concatenate(
      lead,
      c->Matrix(c->Dim(a, transpose_a ? -1 : -2), c->Dim(b, transpose_b ? -2 : -1)),
      result);
}

constexpr char kDatapathDoc[] = R"(
a: Codes [..., M, K], with transpose_a [..., K, M].
b: Codes [..., K, N], with transpose_b [..., N, K]. Axes before the last two are broadcast. A code
  outside of its format is refused with InvalidArgument (under XLA it counts as 0).
a_scale: A scalar, or [..., M or 1, G or 1] with G = ceil(K / vector_size).
b_scale: A scalar, or [..., G or 1, N or 1]. Scales are finite normals, else InvalidArgument (under
  XLA they count as 1).
)";

REGISTER_OP("LnsMatmul")
    .Input("a: Ta")
    .Input("b: Tb")
    .Input("a_scale: float")
    .Input("b_scale: float")
    .Output("product: float")
    .LNS_MATMUL_ATTRS
    .SetShapeFn([](InferenceContext* c) -> Status {
      Datapath datapath;
      TF_RETURN_IF_ERROR(GetDatapath(c, &datapath));
      ShapeHandle result;
      TF_RETURN_IF_ERROR(MatmulShape(c, &result));
      c->set_output(0, result);
      return absl::OkStatus();
    })
    .Doc(absl::StrCat(R"(
The product of two matrices of codes, as a datapath of hardware computes it, bit for bit.
)",
                      kDatapathDoc, R"(
product: ldexp(float32(accumulator), lsb) * float32(a_scale * b_scale).
)"));

REGISTER_OP("LnsMatmulDetails")
    .Input("a: Ta")
    .Input("b: Tb")
    .Input("a_scale: float")
    .Input("b_scale: float")
    .Output("product: float")
    .Output("accumulators: int32")
    .Output("saturated: int64")
    .Output("truncated: int64")
    .LNS_MATMUL_ATTRS
    .SetShapeFn([](InferenceContext* c) -> Status {
      Datapath datapath;
      TF_RETURN_IF_ERROR(GetDatapath(c, &datapath));
      ShapeHandle result, accumulators;
      TF_RETURN_IF_ERROR(MatmulShape(c, &result));
      accumulators = result;
      if (datapath.bins) {
        TF_RETURN_IF_ERROR(
            c->Concatenate(result, c->Vector(1 << datapath.lut_bits), &accumulators));
      }
      c->set_output(0, result);
      c->set_output(1, accumulators);
      c->set_output(2, c->Scalar());
      c->set_output(3, c->Scalar());
      return absl::OkStatus();
    })
    .Doc(absl::StrCat(R"(
LnsMatmul with what happened inside; scales must not change along K.
)",
                      kDatapathDoc, R"(
product: As of LnsMatmul.
accumulators: [..., M, N]; [..., M, N, 2^lut_bits] with conversion = 'bins'.
saturated: How many accumulators were clamped, once or more often.
truncated: How many accumulators had a term of which bits were dropped.
)"));

}  // namespace
}  // namespace lns
