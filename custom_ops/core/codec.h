// Encode, decode, requantize and quantize one element: the plain form that every
// vectorised kernel must equal bit for bit. Decisions fall on the bits of a float,
// never on compares of denormals, so the flush mode of the thread does not matter.

#ifndef TF_LNS_CORE_CODEC_H_
#define TF_LNS_CORE_CODEC_H_

#include <algorithm>
#include <cstdint>

#include "core/format.h"
#include "core/random.h"

namespace lns {

enum class Rounding { kNearest, kStochastic };
enum class Underflow { kClamp, kFlush };

// What an encode or a quantize does, apart from the scale.
struct CodecPlan {
  Format format;
  const Tables* tables = nullptr;
  Rounding rounding = Rounding::kNearest;
  Underflow underflow = Underflow::kClamp;
  RandomKey key;
  // Quantize only: let Inf pass, as NaN always does, in place of saturating it.
  bool pass_infinity = false;
  // Write floats past the caches: for results too large to be found there later.
  bool around_cache = false;

  CodecPlan() = default;
  explicit LNS_INLINE CodecPlan(const Format& f)
      : format(f), tables(&Tables::Of(f.base_factor)) {}
};

LNS_INLINE bool IsNan(float x) { return (Bits(x) & kMagnitudeMask) > kInfBits; }

// log2(1 + mantissa/2^23), kLog2FractionBits fraction bits.
LNS_INLINE int32_t Log2Fixed(const Tables& tables, uint32_t mantissa) {
  const uint32_t segment = mantissa >> 15;
  const int32_t t = static_cast<int32_t>(mantissa & 0x7FFFu);
  const int32_t curve = ((tables.log2_square[segment] * t >> 15) * t) >> 15;
  const uint32_t slope = static_cast<uint32_t>(tables.log2_slope[segment]) * t;
  return tables.log2_start[segment] + static_cast<int32_t>(slope >> 15) + curve;
}

// Exponent of a positive finite float32, not clamped to any range.
LNS_INLINE int32_t NearestExponent(const Tables& tables, int base_factor,
                                   uint32_t bits) {
  const float mantissa = FromBits((bits & kMantissaMask) | 0x3F800000u);
  // A binary search; the number of thresholds is a power of two.
  const float* thresholds = tables.threshold.data();
  int32_t within = 0;
  for (int32_t half = base_factor / 2; half > 0; half /= 2) {
    if (thresholds[within + half - 1] <= mantissa) within += half;
  }
  within += thresholds[within] <= mantissa;
  return (static_cast<int32_t>(bits >> 23) - 127) * base_factor + within;
}

// The code of x; x must not be NaN. `index` is the flat index, for the random draw.
LNS_INLINE int32_t EncodeOne(const CodecPlan& plan, float x, float scale,
                             uint64_t index) {
  const uint32_t bits = Bits(x);
  const uint32_t magnitude = bits & kMagnitudeMask;
  if (magnitude < kMinNormalBits) return 0;
  const bool negative = (bits >> 31) != 0;
  // x and scale are normal, so only the quotient can be tiny; on its bits that reads as
  // small.
  const uint32_t ratio = Bits(FromBits(magnitude) / scale);
  if (plan.underflow == Underflow::kFlush && ratio < 0x3F000000u) return 0;
  const int32_t max_exponent = plan.format.max_exponent();
  int32_t exponent;
  if (ratio >= kInfBits) {
    exponent = max_exponent;
  } else if (plan.rounding == Rounding::kNearest) {
    exponent = NearestExponent(*plan.tables, plan.format.base_factor, ratio);
  } else {
    const int fraction = kLog2FractionBits - plan.format.log2_base_factor();
    const int32_t draw =
        static_cast<int32_t>(RandomBits(plan.key, index) >> (32 - fraction));
    const int32_t within =
        (Log2Fixed(*plan.tables, ratio & kMantissaMask) + draw) >> fraction;
    exponent =
        (static_cast<int32_t>(ratio >> 23) - 127) * plan.format.base_factor + within;
  }
  const int32_t code = std::min(std::max(exponent, 0), max_exponent) + 1;
  return negative ? -code : code;
}

// The value of a code in -L..L.
LNS_INLINE float DecodeOne(const Format& format, const Tables& tables, int32_t code,
                           float scale) {
  if (code == 0) return 0.0f;
  const int32_t exponent = (code < 0 ? -code : code) - 1;
  const int shift = format.log2_base_factor();
  const float mantissa = scale * tables.decode[exponent & (format.base_factor - 1)];
  const float value = std::ldexp(mantissa, exponent >> shift);
  return code < 0 ? -value : value;
}

LNS_INLINE float QuantizeOne(const CodecPlan& plan, float x, float scale,
                             uint64_t index) {
  if (IsNan(x)) return x;
  if (plan.pass_infinity && (Bits(x) & kMagnitudeMask) == kInfBits) return x;
  return DecodeOne(plan.format, *plan.tables, EncodeOne(plan, x, scale, index), scale);
}

// Same magnitude in another format, the top of the range kept; ties go away from the
// top.
LNS_INLINE int32_t RequantizeOne(const Format& from, const Format& to, int32_t code) {
  if (code == 0) return 0;
  const int64_t below_top = from.max_exponent() - ((code < 0 ? -code : code) - 1);
  const int64_t moved = (2 * below_top * to.base_factor + from.base_factor) >>
                        (from.log2_base_factor() + 1);
  const int32_t exponent =
      static_cast<int32_t>(std::max<int64_t>(0, to.max_exponent() - moved));
  return code < 0 ? -(exponent + 1) : exponent + 1;
}

// Magnitude that takes part in an abs-max: 0 for NaN, Inf and denormals.
LNS_INLINE float AbsMaxTerm(float x) {
  const uint32_t magnitude = Bits(x) & kMagnitudeMask;
  return magnitude >= kMinNormalBits && magnitude < kInfBits ? FromBits(magnitude)
                                                             : 0.0f;
}

LNS_INLINE float ScaleFromAbsMax(const Format& format, float abs_max,
                                 bool power_of_two) {
  if (!(abs_max > 0.0f)) return 1.0f;
  uint32_t bits = Bits(ScaleTimes(abs_max, format.abs_max_to_scale()));
  if (power_of_two) {
    bits = (bits + kMantissaMask) & ~kMantissaMask;
    bits = std::min(bits, 0x7F000000u);  // 2^127
  }
  return FromBits(bits);
}

}  // namespace lns

#endif  // TF_LNS_CORE_CODEC_H_
