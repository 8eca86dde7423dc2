// The arithmetic of tf_lns/reference.py as XLA graphs: names agree with it and with
// core/. Nothing here calls back to the host, so it compiles for every device.
//
// Bits equal those of the CPU kernels because
// - decisions fall on the bits of a float as integers: XLA flushes denormals;
// - quotients and square roots are taken in float64 and rounded to float32, which is
//   exact for them: XLA rewrites x / constant as x * (1 / constant), and GPUs
//   approximate float32 division;
// - a select or a clamp stands between any product and the sum that takes it, so that
//   the pair cannot become one fused multiply-add.

#ifndef TF_LNS_XLA_LNS_MATH_H_
#define TF_LNS_XLA_LNS_MATH_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "core/codec.h"
#include "core/format.h"
#include "xla/hlo/builder/lib/constants.h"
#include "xla/hlo/builder/xla_builder.h"

namespace lns::lowering {

using ::xla::XlaOp;

// --- Small tools --------------------------------------------------------------------

// Sizes of an array; empty where the builder already holds an error.
std::vector<int64_t> Dimensions(XlaOp x);

// A scalar of x's element type; scalars broadcast in every binary op and select.
template <typename T>
XlaOp Scalar(XlaOp x, T value) {
  return ::xla::ScalarLike(x, value);
}

XlaOp ToBits(XlaOp x);      // float32 as uint32
XlaOp ToFloat(XlaOp bits);  // uint32 as float32
XlaOp ToF32(XlaOp x);       // conversions of value
XlaOp ToF64(XlaOp x);
XlaOp ToS32(XlaOp x);
XlaOp ToU32(XlaOp x);

// float32(a / b) and float32(sqrt(x)), correctly rounded on every device.
XlaOp Quotient(XlaOp a, XlaOp b);
XlaOp Root(XlaOp x);

// table[index] of a constant table, any shape of S32 indices in range: a tree of
// selects for a power of two up to kSelectTable entries (it fuses and vectorises), else
// a gather.
constexpr int kSelectTable = 16;
XlaOp LookUp(absl::Span<const float> table, XlaOp index);
XlaOp LookUp(absl::Span<const int32_t> table, XlaOp index);
XlaOp LookUp(absl::Span<const int64_t> table, XlaOp index);

// Bits of the largest magnitude over `dims`, where NaN, Inf and denormals do not take
// part; 0 for none.
XlaOp MaxMagnitude(XlaOp x, absl::Span<const int64_t> dims);

XlaOp MaxOfAll(XlaOp x);        // of integers or truth values from 0 on, as U32
XlaOp CountNonfinite(XlaOp x);  // as S64

// --- Random numbers -----------------------------------------------------------------

// Flat indices of a tensor of these sizes, U32.
XlaOp FlatIndex(::xla::XlaBuilder* builder, absl::Span<const int64_t> dims);

// reference.random_bits at these indices; `seed` is an S64 scalar.
XlaOp RandomBits(XlaOp index, XlaOp seed);

// --- Scales -------------------------------------------------------------------------

// Whether each element is finite and at least 2^-126.
XlaOp IsValidScale(XlaOp scale);

// `scale` with 1 in place of what is no valid scale: XLA cannot refuse.
XlaOp ValidScale(XlaOp scale);

// A scale over the elements of a tensor: the scalar itself, or the tensor's shape.
// `vector_size` as in ScaleView: at most the size of its axis.
XlaOp ExpandScale(XlaOp scale, absl::Span<const int64_t> dims,
                  absl::Span<const int32_t> axis, int64_t vector_size);

// reference.scale_of.
XlaOp ScaleOf(XlaOp x, const Format& format, absl::Span<const int32_t> axis,
              int64_t vector_size, bool power_of_two);

// reference.requantize_scale.
XlaOp RequantizeScale(XlaOp scale, const Format& from, const Format& to);

// --- Codec. Codes are S32 here, a scale is expanded ---------------------------------

XlaOp IsNan(XlaOp x);

// Exponent of positive finite floats given by their bits, not clamped.
XlaOp NearestExponent(int base_factor, XlaOp bits);
XlaOp StochasticExponent(int base_factor, XlaOp bits, XlaOp draw);

// Codes of x, 0 for NaN. `seed` is looked at for stochastic rounding only; the key in
// the plan is not looked at.
XlaOp Encode(const CodecPlan& plan, XlaOp x, XlaOp scale, XlaOp seed);

// Values of codes in -L..L.
XlaOp Decode(const Format& format, XlaOp codes, XlaOp scale);

// Encode and decode in one; NaN passes through, Inf too where the plan says so.
XlaOp Quantize(const CodecPlan& plan, XlaOp x, XlaOp scale, XlaOp seed);

XlaOp Requantize(const Format& from, const Format& to, XlaOp codes);

// Codes with 0, or with the nearest end, in place of what lies outside -L..L.
XlaOp ZeroOutside(const Format& format, XlaOp codes);
XlaOp ClampOutside(const Format& format, XlaOp codes);

}  // namespace lns::lowering

#endif  // TF_LNS_XLA_LNS_MATH_H_
