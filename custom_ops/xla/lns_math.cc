#include "xla/lns_math.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "xla/hlo/builder/lib/arithmetic.h"

namespace lns::lowering {
namespace {

using ::xla::Select;

XlaOp Convert(XlaOp x, ::xla::PrimitiveType type) {
  return ::xla::ConvertElementType(x, type);
}

XlaOp Magnitude(XlaOp bits) { return bits & Scalar(bits, kMagnitudeMask); }

int64_t Product(absl::Span<const int64_t> dims) {
  return std::accumulate(dims.begin(), dims.end(), int64_t{1},
                         std::multiplies<int64_t>());
}

std::vector<int64_t> AllDimensions(XlaOp x) {
  std::vector<int64_t> dims(Dimensions(x).size());
  std::iota(dims.begin(), dims.end(), 0);
  return dims;
}

// A reduction from 0 on of the U32 that `map` makes of x, by `combine` as a computation
// and as a function. A large array is first folded onto a part of itself: combining
// slices element by element uses vectors and all cores, where XLA's own reduction on a
// CPU does not.
XlaOp ReduceFolded(XlaOp x, absl::Span<const int64_t> dims,
                   const std::function<XlaOp(XlaOp)>& map,
                   const ::xla::XlaComputation& computation,
                   const std::function<XlaOp(XlaOp, XlaOp)>& combine) {
  constexpr int64_t kFolds = 8, kLarge = 65536;
  const auto reduce = [&](XlaOp y) {
    return Reduce(map(y), ::xla::ConstantR0<uint32_t>(x.builder(), 0), computation,
                  dims);
  };
  const std::vector<int64_t> shape = Dimensions(x);
  if (Product(shape) < kLarge) return reduce(x);
  for (int64_t dim : dims) {
    const int64_t part = shape[dim] / kFolds;
    if (part == 0) continue;
    // Slices of x itself, so that all of it becomes one loop over x.
    XlaOp folded = map(SliceInDim(x, 0, part, 1, dim));
    for (int64_t i = 1; i < kFolds; ++i) {
      folded = combine(folded, map(SliceInDim(x, i * part, (i + 1) * part, 1, dim)));
    }
    const auto identity = [](XlaOp y) { return y; };
    const XlaOp result = ReduceFolded(folded, dims, identity, computation, combine);
    if (part * kFolds == shape[dim]) return result;
    return combine(result, reduce(SliceInDim(x, part * kFolds, shape[dim], 1, dim)));
  }
  return reduce(x);
}

template <typename T>
XlaOp GatherTable(absl::Span<const T> table, XlaOp index) {
  const std::vector<int64_t> dims = Dimensions(index);
  ::xla::GatherDimensionNumbers numbers;
  numbers.add_collapsed_slice_dims(0);
  numbers.add_start_index_map(0);
  numbers.set_index_vector_dim(dims.size());
  return ::xla::Gather(::xla::ConstantR1<T>(index.builder(), table), index, numbers,
                       {1});
}

// A binary tree over the bits of the index, the lowest first.
template <typename T>
XlaOp SelectTable(absl::Span<const T> table, XlaOp index) {
  std::vector<XlaOp> level;
  for (T value : table) level.push_back(::xla::ConstantR0<T>(index.builder(), value));
  for (int bit = 1; level.size() > 1; bit <<= 1) {
    const XlaOp set = Ne(index & Scalar(index, bit), Scalar(index, 0));
    for (size_t i = 0; i < level.size() / 2; ++i) {
      level[i] = Select(set, level[2 * i + 1], level[2 * i]);
    }
    level.resize(level.size() / 2);
  }
  return level[0];
}

template <typename T>
XlaOp LookUpIn(absl::Span<const T> table, XlaOp index) {
  const size_t size = table.size();
  if (size <= kSelectTable && (size & (size - 1)) == 0)
    return SelectTable(table, index);
  return GatherTable(table, index);
}

// Exponent of an octave: floor(log2) times the base factor.
XlaOp OctaveExponent(int base_factor, XlaOp bits) {
  const XlaOp octave =
      ToS32(bits >> Scalar(bits, 23)) - ::xla::ConstantR0<int32_t>(bits.builder(), 127);
  return octave * Scalar(octave, base_factor);
}

// Number of thresholds at or below a mantissa, given as the 23 fraction bits.
XlaOp CountThresholds(int base_factor, XlaOp mantissa) {
  const std::vector<float>& table = Tables::Of(base_factor).threshold;
  std::vector<int32_t> thresholds;
  for (float value : table) thresholds.push_back(Bits(value) & kMantissaMask);
  const XlaOp m = ToS32(mantissa);
  if (base_factor <= kSelectTable) {
    XlaOp count = Scalar(m, 0);
    for (int32_t threshold : thresholds) {
      count = count + ToS32(Ge(m, Scalar(m, threshold)));
    }
    return count;
  }
  // floor(base_factor * log2) by a polynomial is the count or one less: within 2^-16 of
  // the logarithm, it is wrong only next to an exact step, half a step from a
  // threshold. So one compare settles it, whatever the rounding of the polynomial.
  const XlaOp u = ToFloat(mantissa | Scalar(mantissa, 0x3F800000u)) -
                  ::xla::ConstantR0<float>(m.builder(), 1.0f);
  constexpr float kLog2[] = {1.4390930e-05f, 1.4415921f,   -0.70725346f,
                             0.41156149f,    -0.18983245f, 0.043928627f};
  XlaOp log2 = Scalar(u, kLog2[5]);
  for (int i = 4; i >= 0; --i) log2 = log2 * u + Scalar(u, kLog2[i]);
  const XlaOp below = ToS32(log2 * Scalar(u, static_cast<float>(base_factor)));
  const XlaOp guess = Clamp(Scalar(m, 0), below, Scalar(m, base_factor - 1));
  return guess + ToS32(Ge(m, LookUp(thresholds, guess)));
}

// reference.log2_fixed.
XlaOp Log2Fixed(XlaOp mantissa) {
  const Tables& tables = Tables::Of(1);
  const XlaOp segment = ToS32(mantissa >> Scalar(mantissa, 15));
  const XlaOp t = ToS32(mantissa & Scalar(mantissa, 0x7FFFu));
  const XlaOp shift = Scalar(t, 15);
  const XlaOp square = LookUp(tables.log2_square, segment);
  const XlaOp curve = ((square * t >> shift) * t) >> shift;
  // The product with the slope needs 32 bits without a sign.
  const XlaOp slope = ToU32(LookUp(tables.log2_slope, segment)) * ToU32(t);
  return LookUp(tables.log2_start, segment) + ToS32(slope >> Scalar(slope, 15)) + curve;
}

// Codes of |x|, sign left off, and the bits they come from.
XlaOp EncodeMagnitude(const CodecPlan& plan, XlaOp magnitude, XlaOp scale, XlaOp seed) {
  const Format& format = plan.format;
  const XlaOp ratio = ToBits(Quotient(ToFloat(magnitude), scale));
  XlaOp exponent;
  if (plan.rounding == Rounding::kNearest) {
    exponent = NearestExponent(format.base_factor, ratio);
  } else {
    exponent = StochasticExponent(
        format.base_factor, ratio,
        RandomBits(FlatIndex(seed.builder(), Dimensions(magnitude)), seed));
  }
  const XlaOp top = Scalar(exponent, format.max_exponent());
  exponent = Select(Ge(ratio, Scalar(ratio, kInfBits)), top, exponent);
  XlaOp code = Clamp(Scalar(exponent, 0), exponent, top) + Scalar(exponent, 1);
  XlaOp zero = Lt(magnitude, Scalar(magnitude, kMinNormalBits));
  if (plan.underflow == Underflow::kFlush) {
    zero = Or(zero, Lt(ratio, Scalar(ratio, 0x3F000000u)));
  }
  return Select(zero, Scalar(code, 0), code);
}

// Bits of the value of codes >= 0.
XlaOp DecodeMagnitude(const Format& format, XlaOp code, XlaOp scale) {
  const XlaOp exponent = Max(code, Scalar(code, 1)) - Scalar(code, 1);
  const XlaOp within = exponent & Scalar(code, format.base_factor - 1);
  const XlaOp mantissa =
      ToBits(scale * LookUp(Tables::Of(format.base_factor).decode, within));
  // ldexp on the bits: nothing is denormal here, and what overflows is Inf.
  const XlaOp octave = ToU32(exponent >> Scalar(code, format.log2_base_factor()));
  const XlaOp raised =
      mantissa + (Min(octave, Scalar(octave, 255u)) << Scalar(octave, 23u));
  const XlaOp value = Min(raised, Scalar(raised, kInfBits));
  return Select(Eq(code, Scalar(code, 0)), Scalar(value, 0u), value);
}

// Whether RoundToGrid can stand for encode and decode.
bool HasShortGrid(const CodecPlan& plan) {
  return plan.rounding == Rounding::kNearest &&
         plan.format.base_factor <= kSelectTable && plan.format.octaves() < 127.0;
}

// What DecodeMagnitude makes of EncodeMagnitude, without the code in between: half the
// operations. The mantissa of the ratio is raised or lowered to a step of the table.
XlaOp RoundToGrid(const CodecPlan& plan, XlaOp magnitude, XlaOp scale) {
  const Format& format = plan.format;
  const Tables& tables = Tables::Of(format.base_factor);
  const auto u32 = [&](uint32_t value) { return Scalar(magnitude, value); };
  const int top_within = format.max_exponent() & (format.base_factor - 1);
  const int top_octave = format.max_exponent() >> format.log2_base_factor();
  const uint32_t top = Bits(tables.decode[top_within]) + (top_octave << 23);

  const XlaOp raw_ratio = ToBits(Quotient(ToFloat(magnitude), scale));
  const XlaOp ratio = Clamp(u32(Bits(1.0f)), raw_ratio, u32(top));
  const XlaOp mantissa = ToS32(ratio & u32(kMantissaMask));
  XlaOp step = Scalar(ToFloat(ratio), 1.0f);
  for (int i = 0; i < format.base_factor; ++i) {
    const int32_t threshold = Bits(tables.threshold[i]) & kMantissaMask;
    const float next = i + 1 < format.base_factor ? tables.decode[i + 1] : 2.0f;
    step = Select(Ge(mantissa, Scalar(mantissa, threshold)), Scalar(step, next), step);
  }
  // ldexp on the bits, as in DecodeMagnitude.
  const XlaOp octave = (ratio & u32(~kMantissaMask)) - u32(Bits(1.0f));
  const XlaOp value = Min(ToBits(scale * step) + octave, u32(kInfBits));
  XlaOp zero = Lt(magnitude, u32(kMinNormalBits));
  if (plan.underflow == Underflow::kFlush) {
    zero = Or(zero, Lt(raw_ratio, u32(0x3F000000u)));
  }
  return Select(zero, u32(0), value);
}

XlaOp SignBit(XlaOp bits) { return bits & Scalar(bits, ~kMagnitudeMask); }

// Bits of float32(x * float32(factor)), at least 2^-126, from those of normal floats x.
// Exponents are added as integers: the factor is a denormal in wide formats, or out of
// range.
XlaOp TimesPower(XlaOp bits, double factor) {
  const auto u32 = [&](uint32_t value) { return Scalar(bits, value); };
  if (factor >= 0x1p128) return ::xla::FullLike(bits, kInfBits);
  int power;
  double mantissa = std::frexp(factor, &power);
  // Rounds to float32, denormals included; not by a float, as TensorFlow's threads
  // flush denormals.
  const double unit = std::exp2(std::max(-24, -149 - power));
  mantissa = std::nearbyint(mantissa / unit) * unit;
  if (mantissa == 0.0) return ::xla::FullLike(bits, kMinNormalBits);

  const XlaOp x = ToFloat((bits & u32(kMantissaMask)) | u32(0x3F800000u));
  const XlaOp product = ToBits(x * Scalar(x, static_cast<float>(mantissa)));
  const XlaOp exponent = ToS32(product >> u32(23)) + ToS32(bits >> u32(23)) +
                         ::xla::ConstantR0<int32_t>(bits.builder(), power - 127);
  const XlaOp moved = (product & u32(kMantissaMask)) | (ToU32(exponent) << u32(23));
  return Select(Lt(exponent, Scalar(exponent, 1)), u32(kMinNormalBits),
                Select(Gt(exponent, Scalar(exponent, 254)), u32(kInfBits), moved));
}

}  // namespace

// --- Small tools --------------------------------------------------------------------

std::vector<int64_t> Dimensions(XlaOp x) {
  const auto shape = x.builder()->GetShape(x);
  if (!shape.ok()) return {};
  return {shape->dimensions().begin(), shape->dimensions().end()};
}

XlaOp ToBits(XlaOp x) { return BitcastConvertType(x, ::xla::U32); }
XlaOp ToFloat(XlaOp bits) { return BitcastConvertType(bits, ::xla::F32); }
XlaOp ToF32(XlaOp x) { return Convert(x, ::xla::F32); }
XlaOp ToF64(XlaOp x) { return Convert(x, ::xla::F64); }
XlaOp ToS32(XlaOp x) { return Convert(x, ::xla::S32); }
XlaOp ToU32(XlaOp x) { return Convert(x, ::xla::U32); }

XlaOp Quotient(XlaOp a, XlaOp b) { return ToF32(ToF64(a) / ToF64(b)); }

XlaOp Root(XlaOp x) { return ToF32(Sqrt(ToF64(x))); }

XlaOp LookUp(absl::Span<const float> table, XlaOp index) {
  return LookUpIn(table, index);
}
XlaOp LookUp(absl::Span<const int32_t> table, XlaOp index) {
  return LookUpIn(table, index);
}
XlaOp LookUp(absl::Span<const int64_t> table, XlaOp index) {
  return LookUpIn(table, index);
}

XlaOp MaxMagnitude(XlaOp x, absl::Span<const int64_t> dims) {
  const auto term = [](XlaOp y) {
    const XlaOp magnitude = Magnitude(ToBits(y));
    const auto u32 = [&](uint32_t value) { return Scalar(magnitude, value); };
    const XlaOp takes_part =
        And(Ge(magnitude, u32(kMinNormalBits)), Lt(magnitude, u32(kInfBits)));
    return Select(takes_part, magnitude, u32(0));
  };
  return ReduceFolded(x, dims, term,
                      ::xla::CreateScalarMaxComputation(::xla::U32, x.builder()),
                      [](XlaOp a, XlaOp b) { return Max(a, b); });
}

XlaOp MaxOfAll(XlaOp x) {
  return ReduceFolded(x, AllDimensions(x), ToU32,
                      ::xla::CreateScalarMaxComputation(::xla::U32, x.builder()),
                      [](XlaOp a, XlaOp b) { return Max(a, b); });
}

XlaOp CountNonfinite(XlaOp x) {
  const XlaOp count = ReduceFolded(
      x, AllDimensions(x), [](XlaOp y) { return ToU32(Not(IsFinite(y))); },
      ::xla::CreateScalarAddComputation(::xla::U32, x.builder()),
      [](XlaOp a, XlaOp b) { return a + b; });
  return Convert(count, ::xla::S64);
}

// --- Random numbers -----------------------------------------------------------------

XlaOp FlatIndex(::xla::XlaBuilder* builder, absl::Span<const int64_t> dims) {
  return Reshape(Iota(builder, ::xla::U32, Product(dims)), dims);
}

XlaOp RandomBits(XlaOp index, XlaOp seed) {
  // splitmix64 of the seed gives the two keys.
  XlaOp key = Convert(seed, ::xla::U64);
  const auto u64 = [&](uint64_t value) { return Scalar(key, value); };
  key = key + u64(0x9E3779B97F4A7C15ull);
  key = (key ^ (key >> u64(30))) * u64(0xBF58476D1CE4E5B9ull);
  key = (key ^ (key >> u64(27))) * u64(0x94D049BB133111EBull);
  key = key ^ (key >> u64(31));
  const XlaOp key0 = ToU32(key & u64(0xFFFFFFFFull)), key1 = ToU32(key >> u64(32));

  XlaOp x = index ^ key0;
  const auto u32 = [&](uint32_t value) { return Scalar(x, value); };
  x = (x ^ (x >> u32(16))) * u32(kRandomMultiplier0);
  x = x + key1;
  x = (x ^ (x >> u32(15))) * u32(kRandomMultiplier1);
  return x ^ (x >> u32(16));
}

// --- Scales -------------------------------------------------------------------------

XlaOp IsValidScale(XlaOp scale) {
  const XlaOp bits = ToBits(scale);
  return And(Ge(bits, Scalar(bits, kMinNormalBits)), Lt(bits, Scalar(bits, kInfBits)));
}

XlaOp ValidScale(XlaOp scale) {
  return Select(IsValidScale(scale), scale, ::xla::FullLike(scale, 1.0f));
}

XlaOp ExpandScale(XlaOp scale, absl::Span<const int64_t> dims,
                  absl::Span<const int32_t> axis, int64_t vector_size) {
  if (axis.empty()) return scale;
  if (vector_size == 0) {
    return BroadcastInDim(scale, dims, std::vector<int64_t>(axis.begin(), axis.end()));
  }
  // [.., blocks, ..] -> [.., blocks, vector_size, ..] -> [.., elements, ..]
  const int64_t at = axis[0];
  std::vector<int64_t> split = Dimensions(scale);
  if (split.size() != dims.size()) return scale;  // the builder holds an error
  std::vector<int64_t> merged = split;
  merged[at] *= vector_size;
  split.insert(split.begin() + at + 1, vector_size);
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < static_cast<int64_t>(split.size()); ++i) {
    if (i != at + 1) kept.push_back(i);
  }
  const XlaOp repeated = Reshape(BroadcastInDim(scale, split, kept), merged);
  return SliceInDim(repeated, 0, dims[at], 1, at);
}

XlaOp ScaleOf(XlaOp x, const Format& format, absl::Span<const int32_t> axis,
              int64_t vector_size, bool power_of_two) {
  std::vector<int64_t> dims = Dimensions(x);
  std::vector<int64_t> reduced;
  if (vector_size > 0) {
    const int64_t at = axis[0];
    const int64_t blocks = (dims[at] + vector_size - 1) / vector_size;
    x = PadInDim(x, Scalar(x, 0.0f), at, 0, blocks * vector_size - dims[at]);
    dims[at] = blocks;
    dims.insert(dims.begin() + at + 1, vector_size);
    x = Reshape(x, dims);
    reduced = {at + 1};
  } else {
    for (int64_t i = 0; i < static_cast<int64_t>(dims.size()); ++i) {
      if (std::find(axis.begin(), axis.end(), i) == axis.end()) reduced.push_back(i);
    }
  }
  const XlaOp largest = MaxMagnitude(x, reduced);
  const auto u32 = [&](uint32_t value) { return Scalar(largest, value); };
  XlaOp bits = TimesPower(largest, std::exp2(-format.octaves()));
  if (power_of_two) {
    bits = (bits + u32(kMantissaMask)) & u32(~kMantissaMask);
    bits = Min(bits, u32(0x7F000000u));  // 2^127
  }
  return ToFloat(Select(Eq(largest, u32(0)), u32(Bits(1.0f)), bits));
}

XlaOp RequantizeScale(XlaOp scale, const Format& from, const Format& to) {
  return ToFloat(TimesPower(ToBits(scale), std::exp2(from.octaves() - to.octaves())));
}

// --- Codec --------------------------------------------------------------------------

XlaOp IsNan(XlaOp x) {
  const XlaOp magnitude = Magnitude(ToBits(x));
  return Gt(magnitude, Scalar(magnitude, kInfBits));
}

XlaOp NearestExponent(int base_factor, XlaOp bits) {
  return OctaveExponent(base_factor, bits) +
         CountThresholds(base_factor, bits & Scalar(bits, kMantissaMask));
}

XlaOp StochasticExponent(int base_factor, XlaOp bits, XlaOp draw) {
  const int fraction = kLog2FractionBits - Format{16, base_factor}.log2_base_factor();
  const XlaOp log2 = Log2Fixed(bits & Scalar(bits, kMantissaMask));
  const XlaOp raised = log2 + ToS32(draw >> Scalar(draw, 32 - fraction));
  return OctaveExponent(base_factor, bits) + (raised >> Scalar(raised, fraction));
}

XlaOp Encode(const CodecPlan& plan, XlaOp x, XlaOp scale, XlaOp seed) {
  const XlaOp bits = ToBits(x);
  const XlaOp magnitude = Magnitude(bits);
  XlaOp code = EncodeMagnitude(plan, magnitude, scale, seed);
  code = Select(Ne(SignBit(bits), Scalar(bits, 0u)), Neg(code), code);
  return Select(Gt(magnitude, Scalar(bits, kInfBits)), Scalar(code, 0), code);
}

XlaOp Decode(const Format& format, XlaOp codes, XlaOp scale) {
  const XlaOp value = DecodeMagnitude(format, Abs(codes), scale);
  const XlaOp sign = Select(Lt(codes, Scalar(codes, 0)), Scalar(value, ~kMagnitudeMask),
                            Scalar(value, 0u));
  return ToFloat(value | sign);
}

XlaOp Quantize(const CodecPlan& plan, XlaOp x, XlaOp scale, XlaOp seed) {
  const XlaOp bits = ToBits(x);
  const XlaOp magnitude = Magnitude(bits);
  const XlaOp value =
      HasShortGrid(plan)
          ? RoundToGrid(plan, magnitude, scale)
          : DecodeMagnitude(plan.format, EncodeMagnitude(plan, magnitude, scale, seed),
                            scale);
  const XlaOp zero = Scalar(bits, 0u), inf = Scalar(bits, kInfBits);
  const XlaOp with_sign = Select(Eq(value, zero), zero, value | SignBit(bits));
  const XlaOp passes = plan.pass_infinity ? Ge(magnitude, inf) : Gt(magnitude, inf);
  return ToFloat(Select(passes, bits, with_sign));
}

XlaOp Requantize(const Format& from, const Format& to, XlaOp codes) {
  const auto s32 = [&](int32_t value) { return Scalar(codes, value); };
  const XlaOp below_top = s32(from.max_exponent() + 1) - Abs(codes);
  const XlaOp moved = (below_top * s32(2 * to.base_factor) + s32(from.base_factor)) >>
                      s32(from.log2_base_factor() + 1);
  const XlaOp magnitude = Max(s32(0), s32(to.max_exponent()) - moved) + s32(1);
  const XlaOp signed_code = Select(Lt(codes, s32(0)), Neg(magnitude), magnitude);
  return Select(Eq(codes, s32(0)), s32(0), signed_code);
}

XlaOp ZeroOutside(const Format& format, XlaOp codes) {
  return Select(Gt(Abs(codes), Scalar(codes, format.max_code())), Scalar(codes, 0),
                codes);
}

XlaOp ClampOutside(const Format& format, XlaOp codes) {
  return Clamp(Scalar(codes, -format.max_code()), codes,
               Scalar(codes, format.max_code()));
}

}  // namespace lns::lowering
