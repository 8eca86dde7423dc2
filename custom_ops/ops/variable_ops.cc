// Signatures of the ops on an integer weight: a resource variable of int8 or int16
// codes, read and written through a handle that calls itself float32. S is the weight's
// shape.

#include "ops/shapes.h"
#include "tensorflow/core/framework/op.h"

namespace lns {
namespace {

REGISTER_OP("LnsReadVariable")
    .Input("codes: resource")
    .Input("scale: float")
    .Output("value: float")
    .Attr("Tcode: {int8, int16}")
    .Attr("bits: int")
    .Attr("base_factor: int")
    .Attr("read_bits: int")
    .Attr("read_base_factor: int")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "", &format));
      TF_RETURN_IF_ERROR(GetFormat(c, "read_", &format));
      TF_RETURN_IF_ERROR(Scalars(c, 0, 1));
      c->set_output(0, HandleShape(c, 0));
      return absl::OkStatus();
    })
    .Doc(R"(
Reads an integer weight as float32, in its storage format or requantized to a narrower one.

codes: Handle of the variable of codes. Codes outside -L..L read as the nearest end.
scale: Scale of the storage format, a scalar: finite, at least 2^-126, and finite in the format that
  is read too, else InvalidArgument. Under XLA, which cannot refuse values, an invalid scale counts
  as 1.
value: The decoded weight.
read_bits: Bits of the format in which the weight is seen; those of the storage format for none.
)");

REGISTER_OP("LnsAssignVariable")
    .Input("codes: resource")
    .Input("scale: float")
    .Input("value: float")
    .Input("seed: int64")
    .Attr("Tcode: {int8, int16}")
    .Attr("bits: int")
    .Attr("base_factor: int")
    .Attr("rounding: {'nearest', 'stochastic'} = 'nearest'")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) -> Status {
      Format format;
      TF_RETURN_IF_ERROR(GetFormat(c, "", &format));
      TF_RETURN_IF_ERROR(Scalars(c, 0, 1));
      TF_RETURN_IF_ERROR(Scalars(c, 3, 3));
      ShapeHandle merged;
      return c->Merge(HandleShape(c, 0), c->input(2), &merged);
    })
    .Doc(R"(
Writes float32 values into an integer weight. Small non-zero values clamp, as a multiplicative
update could never revive a zero. NaN is refused with InvalidArgument and nothing is written; under
XLA, which cannot refuse, a NaN leaves its element as it was, and an invalid scale all of them.
)");

}  // namespace
}  // namespace lns
