// Signatures of the codec ops. Dimensions: x and codes have any shape S; a scale has
// shape C, see `axis` and `vector_size`.

#include "ops/shapes.h"
#include "tensorflow/core/framework/op.h"

namespace lns {
namespace {

constexpr char kScaleDoc[] = R"(
A scale is a finite normal float32 (>= 2^-126). Its shape follows from two attributes:
axis = [] and vector_size = 0: a scalar; axis = neighbouring axes: one scale per index along them;
one axis and vector_size = n: one for every n consecutive elements along it (the shape of x with
that axis counted in vectors). Any other scale is refused with InvalidArgument; under XLA, which
cannot refuse values, it counts as 1.
)";

#define LNS_FORMAT_ATTRS Attr("bits: int").Attr("base_factor: int")
#define LNS_SCALE_ATTRS Attr("axis: list(int) = []").Attr("vector_size: int = 0")
#define LNS_ROUNDING_ATTRS                                \
  Attr("rounding: {'nearest', 'stochastic'} = 'nearest'") \
      .Attr("underflow: {'clamp', 'flush'} = 'clamp'")

REGISTER_OP("LnsEncode")
    .Input("x: float")
    .Input("scale: float")
    .Input("seed: int64")
    .Output("codes: Tcode")
    .Attr("Tcode: {int8, int16}")
    .LNS_FORMAT_ATTRS.LNS_SCALE_ATTRS.LNS_ROUNDING_ATTRS
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "", &format));
      TF_RETURN_IF_ERROR(CheckScale(c, c->input(0), 1));
      TF_RETURN_IF_ERROR(Scalars(c, 2, 2));
      c->set_output(0, c->input(0));
      return absl::OkStatus();
    })
    .Doc(absl::StrCat(R"(
Float32 to LNS codes, rounding to nearest (or stochastically) in the log domain.

x: Values; NaN is refused with InvalidArgument (under XLA its code is 0), denormals count as zero,
  Inf saturates.
scale: Smallest non-zero magnitude.
seed: Seed of the draws of stochastic rounding; unused otherwise.
codes: Codes in -L..L, L = 2^(bits-1) - 1.
underflow: 'clamp' keeps small non-zero values at the smallest magnitude, 'flush' makes values
  below half of it zero.
)",
                      kScaleDoc));

REGISTER_OP("LnsDecode")
    .Input("codes: Tcode")
    .Input("scale: float")
    .Output("x: float")
    .Attr("Tcode: {int8, int16}")
    .LNS_FORMAT_ATTRS.LNS_SCALE_ATTRS
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "", &format));
      TF_RETURN_IF_ERROR(CheckScale(c, c->input(0), 1));
      c->set_output(0, c->input(0));
      return absl::OkStatus();
    })
    .Doc(absl::StrCat(R"(
LNS codes to float32: sign(c) * scale * 2^((|c|-1) / base_factor), exactly rounded tables.

codes: Codes in -L..L; any other is refused with InvalidArgument (under XLA its value is 0).
)",
                      kScaleDoc));

REGISTER_OP("LnsRequantize")
    .Input("codes: Tfrom")
    .Output("requantized: Tto")
    .Attr("Tfrom: {int8, int16}")
    .Attr("Tto: {int8, int16}")
    .Attr("from_bits: int")
    .Attr("from_base_factor: int")
    .Attr("to_bits: int")
    .Attr("to_base_factor: int")
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "from_", &format));
      TF_RETURN_IF_ERROR(GetFormat(c, "to_", &format));
      c->set_output(0, c->input(0));
      return absl::OkStatus();
    })
    .Doc(R"(
Changes the format of codes, integers alone: steps below the top of the range are rounded, ties
away from the top. The scale becomes float32(scale * float32(2^(octaves_from - octaves_to))).

codes: Codes in -L..L; any other is refused with InvalidArgument (under XLA it becomes 0).
)");

REGISTER_OP("LnsScale")
    .Input("x: float")
    .Output("scale: float")
    .LNS_FORMAT_ATTRS.LNS_SCALE_ATTRS.Attr("power_of_two: bool = false")
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "", &format));
      ShapeHandle scale;
      TF_RETURN_IF_ERROR(ScaleShape(c, c->input(0), "", &scale));
      c->set_output(0, scale);
      return absl::OkStatus();
    })
    .Doc(absl::StrCat(R"(
The scale that puts the largest magnitude of x at the top of the range:
float32(max|x| * float32(2^-octaves)), at least 2^-126; 1 for an all-zero tensor. NaN, Inf and
denormals do not take part.
)",
                      kScaleDoc));

REGISTER_OP("LnsQuantize")
    .Input("x: float")
    .Input("scale: float")
    .Input("seed: int64")
    .Output("y: float")
    .LNS_FORMAT_ATTRS.LNS_SCALE_ATTRS.LNS_ROUNDING_ATTRS
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "", &format));
      TF_RETURN_IF_ERROR(CheckScale(c, c->input(0), 1));
      TF_RETURN_IF_ERROR(Scalars(c, 2, 2));
      c->set_output(0, c->input(0));
      return absl::OkStatus();
    })
    .Doc(absl::StrCat(R"(
Float32 to the nearest float32 value of a format: encode and decode in one pass. NaN passes
through, Inf saturates. The gradient passes straight through.
)",
                      kScaleDoc));

REGISTER_OP("LnsQuantizeDynamic")
    .Input("x: float")
    .Input("seed: int64")
    .Output("y: float")
    .Output("scale: float")
    .LNS_FORMAT_ATTRS.LNS_SCALE_ATTRS.LNS_ROUNDING_ATTRS
    .Attr("power_of_two: bool = false")
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "", &format));
      TF_RETURN_IF_ERROR(Scalars(c, 1, 1));
      ShapeHandle scale;
      TF_RETURN_IF_ERROR(ScaleShape(c, c->input(0), "", &scale));
      c->set_output(0, c->input(0));
      c->set_output(1, scale);
      return absl::OkStatus();
    })
    .Doc(absl::StrCat(R"(
LnsScale and LnsQuantize in one op.
)",
                      kScaleDoc));

REGISTER_OP("LnsQuantizeGradient")
    .Input("x: T")
    .Output("y: T")
    .Attr("T: {half, bfloat16, float}")
    .LNS_FORMAT_ATTRS.LNS_SCALE_ATTRS.LNS_ROUNDING_ATTRS
    .Attr("power_of_two: bool = false")
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "", &format));
      ShapeHandle scale;
      TF_RETURN_IF_ERROR(ScaleShape(c, c->input(0), "", &scale));
      c->set_output(0, c->input(0));
      return absl::OkStatus();
    })
    .Doc(R"(
The identity, whose gradient is quantized: dx = LnsQuantizeDynamic(dy).
)");

}  // namespace
}  // namespace lns
