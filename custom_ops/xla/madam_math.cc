#include "xla/madam_math.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace lns::lowering {
namespace {

using ::xla::Select;

XlaOp Clip(XlaOp x, float bound) {
  return Clamp(Scalar(x, -bound), x, Scalar(x, bound));
}

// Random bits for the one-byte second moment: reference.compact_draws.
XlaOp CompactDraws(XlaOp seed, absl::Span<const int64_t> dims) {
  const XlaOp own_seed = seed ^ Scalar(seed, static_cast<int64_t>(kCompactSeed));
  const XlaOp index = FlatIndex(seed.builder(), dims);
  const auto u32 = [&](uint32_t value) { return Scalar(index, value); };
  const XlaOp word = RandomBits(index >> u32(2), own_seed);
  // Rotated right by the bytes that the element's neighbours take; a shift by 32 is 0.
  const XlaOp by = (index & u32(3)) << u32(3);
  return ToS32(((word >> by) | (word << (u32(32) - by))) & u32(0xFFFF));
}

// The exponent of the tensor at its first non-zero gradient; kNoExponent before.
XlaOp FirstCompactExponent(const CompactTables& tables, XlaOp gradient) {
  std::vector<int64_t> dims(Dimensions(gradient).size());
  std::iota(dims.begin(), dims.end(), 0);
  const XlaOp magnitude = MaxMagnitude(gradient, dims);
  const XlaOp eighths = NearestExponent(8, magnitude);
  const auto s32 = [&](int32_t value) { return Scalar(eighths, value); };
  const XlaOp top = eighths + s32(tables.first);
  const XlaOp above = s32(1) - (Neg(top) >> s32(2));  // ceil(top / 4) + 1
  return Select(Eq(magnitude, Scalar(magnitude, 0u)), s32(kNoExponent),
                Max(above, s32(kCompactLowestExponent)));
}

// Moves the tensor's exponent so that the largest k lies in 115..127, if it left that.
void ShiftCompact(XlaOp exponent, CompactMoment* moment) {
  const XlaOp k = moment->k;
  const auto s32 = [&](int32_t value) { return Scalar(k, value); };
  const XlaOp largest = ToS32(MaxOfAll(k));
  const XlaOp stays =
      Or(Eq(largest, s32(0)), And(Ge(largest, s32(115)), Le(largest, s32(127))));
  // ceil((largest - 127) / 4) + 1
  const XlaOp rise = s32(1) - ((s32(127) - largest) >> s32(2));
  const XlaOp shift =
      Select(stays, s32(0), Max(rise, s32(kCompactLowestExponent) - exponent));
  const XlaOp shifted = Clamp(s32(1), k - shift * s32(4), s32(127));
  moment->k = Select(Or(stays, Eq(k, s32(0))), k, shifted);
  moment->exponent = Select(Eq(shift, s32(0)), moment->exponent, exponent + shift);
}

}  // namespace

XlaOp NoTiny(XlaOp x) {
  return Select(Lt(Abs(x), Scalar(x, kTiny)), ::xla::ZerosLike(x), x);
}

XlaOp Positive(XlaOp x) {
  return Select(Ge(x, Scalar(x, kTiny)), x, ::xla::ZerosLike(x));
}

XlaOp BiasCorrection(float beta, XlaOp step) {
  XlaOp power = ::xla::ConstantR0<double>(step.builder(), 1.0);
  double base = beta;
  int bit = 0;
  // Powers below 2^-60 are lost in 1 - power, so any step that has one ends the same.
  for (; base > 0x1p-60 && bit < 63; ++bit) {
    const XlaOp set = Ne(step & Scalar(step, int64_t{1} << bit), Scalar(step, 0));
    power = Select(set, power * Scalar(power, base), power);
    base *= base;
  }
  const XlaOp beyond = Ne(step >> Scalar(step, bit), Scalar(step, 0));
  power = Select(beyond, Scalar(power, 0.0), power);
  return Scalar(power, 1.0) - power;
}

XlaOp FiniteGradient(XlaOp gradient) {
  const XlaOp bits = ToBits(gradient);
  const XlaOp magnitude = bits & Scalar(bits, kMagnitudeMask);
  const XlaOp counts = And(Ge(magnitude, Scalar(bits, kMinNormalBits)),
                           Lt(magnitude, Scalar(bits, kInfBits)));
  return Clip(Select(counts, gradient, ::xla::ZerosLike(gradient)), kLargestGradient);
}

XlaOp NormalizedGradient(const StepPlan& plan, XlaOp gradient, XlaOp* second_moment) {
  const XlaOp g = gradient;
  const XlaOp square = Positive(Scalar(g, 1.0f - plan.beta) * (g * g));
  const XlaOp moment = Positive(Scalar(g, plan.beta) * *second_moment) + square;
  *second_moment = moment;
  const XlaOp correction = ToF32(Scalar(plan.corrected, 1.0) / plan.corrected);
  const XlaOp none = Eq(moment, Scalar(moment, 0.0f));
  // The select also keeps the root's rounding to float32 from being left out.
  const XlaOp root =
      Select(none, ::xla::FullLike(moment, 1.0f), Root(moment * correction));
  const XlaOp g_hat = NoTiny(Clip(Quotient(g, root), plan.g_bound));
  return Select(none, ::xla::ZerosLike(g_hat), g_hat);
}

XlaOp NormalizedGradientCompact(const StepPlan& plan, XlaOp gradient,
                                CompactMoment* second_moment) {
  const CompactTables tables(plan.beta);
  const XlaOp bits = ToBits(gradient);
  const XlaOp magnitude = bits & Scalar(bits, kMagnitudeMask);
  const XlaOp k = Max(second_moment->k, Scalar(second_moment->k, 0));
  const auto s32 = [&](int32_t value) { return Scalar(k, value); };

  XlaOp& stored = second_moment->exponent;
  stored = Select(Eq(stored, s32(kNoExponent)), FirstCompactExponent(tables, gradient),
                  stored);
  // Still none: no gradient yet, and no byte of v will move.
  const XlaOp exponent =
      Select(Eq(stored, s32(kNoExponent)), s32(0),
             Clamp(s32(kCompactLowestExponent), stored, s32(kCompactHighestExponent)));

  const XlaOp base = s32(tables.first + 127) - s32(4) * exponent;
  const XlaOp zero = Eq(magnitude, Scalar(magnitude, 0u));
  const XlaOp added =
      Select(zero, s32(kCompactLowest),
             Max(s32(kCompactLowest), NearestExponent(8, magnitude) + base));
  const XlaOp x = Clamp(s32(kCompactLowest), added - k, s32(kCompactHighest));
  const XlaOp growth = LookUp(tables.growth, x - s32(kCompactLowest)) +
                       CompactDraws(plan.seed, Dimensions(k));
  XlaOp grown = Max(k + (growth >> s32(kCompactFractionBits)), s32(1));
  grown = Max(Select(Gt(k, s32(0)), grown, s32(0)),
              Select(zero, s32(0), Max(added, s32(1))));
  second_moment->k = Min(grown, s32(kCompactLargest));

  // 1 / sqrt(v / (1 - beta^t)), a normal number for every exponent that can be.
  const XlaOp z = s32(127) - s32(4) * exponent - grown;
  const XlaOp root = Root(plan.corrected);
  const XlaOp mantissa = LookUp(Tables::Of(8).decode, z & s32(7)) * root;
  const XlaOp over_root =
      ToFloat(ToBits(mantissa) + (ToU32(z >> s32(3)) << Scalar(bits, 23u)));
  const XlaOp g_hat = NoTiny(Clip(gradient * over_root, plan.g_bound));
  ShiftCompact(exponent, second_moment);
  return Select(Eq(grown, s32(0)), ::xla::ZerosLike(g_hat), g_hat);
}

XlaOp StepInCodes(const StepPlan& plan, XlaOp g_hat, XlaOp codes, XlaOp weight_decay) {
  const float base_factor = plan.format.base_factor;
  XlaOp rate = NoTiny(Clip(plan.learning_rate, kLargestStep));
  rate = NoTiny(rate * Scalar(rate, base_factor));  // keeps the two products apart
  const XlaOp toward_zero =
      Select(Lt(codes, Scalar(codes, 0)), Neg(g_hat), g_hat) + weight_decay;
  const XlaOp delta = NoTiny(Clip(rate * toward_zero, kLargestStep));
  if (plan.rounding == Rounding::kNearest) return ToS32(RoundNearestEven(delta));
  const XlaOp draw =
      RandomBits(FlatIndex(plan.seed.builder(), Dimensions(codes)), plan.seed);
  const XlaOp u = ToF32(draw >> Scalar(draw, 8)) * Scalar(delta, 0x1p-24f);
  return ToS32(Floor(delta + u));
}

XlaOp ApplyStep(const StepPlan& plan, XlaOp codes, XlaOp steps) {
  const auto s32 = [&](int32_t value) { return Scalar(codes, value); };
  const XlaOp crossing = Ge(plan.floor, s32(0));  // floor = -1 changes nothing below
  const XlaOp exponent = Max(Abs(codes) - s32(1), plan.floor);
  XlaOp moved = exponent - steps;
  const XlaOp crossed = And(crossing, Lt(moved, plan.floor));
  const XlaOp back =
      Min(s32(2) * plan.floor - moved, plan.floor + s32(plan.format.base_factor));
  moved = Select(crossed, back, moved);
  moved = Clamp(s32(0), moved, s32(plan.format.max_exponent()));
  moved = Min(moved, Max(plan.cap, exponent));
  const XlaOp negative = Ne(Lt(codes, s32(0)), crossed);
  const XlaOp code = moved + s32(1);
  return Select(Eq(codes, s32(0)), s32(0), Select(negative, Neg(code), code));
}

XlaOp MadamStep(const StepPlan& plan, XlaOp g_hat, XlaOp codes) {
  if (plan.round_gradient) g_hat = RoundNearestEven(g_hat);
  // With sign crossing, only weights over an octave above the floor decay.
  const auto s32 = [&](int32_t value) { return Scalar(codes, value); };
  const XlaOp decay = NoTiny(plan.weight_decay);
  const XlaOp exponent = Abs(codes) - s32(1);
  const XlaOp decays = Or(Lt(plan.floor, s32(0)),
                          Gt(exponent, plan.floor + s32(plan.format.base_factor)));
  const XlaOp steps =
      StepInCodes(plan, g_hat, codes, Select(decays, decay, Scalar(decay, 0.0f)));
  return ApplyStep(plan, codes, steps);
}

XlaOp AdditiveStep(const StepPlan& plan, XlaOp g_hat, XlaOp weights) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const XlaOp w = NoTiny(weights);
  const XlaOp decay = NoTiny(Clip(NoTiny(plan.weight_decay) * w, kMax));
  const XlaOp change = NoTiny(Clip(NoTiny(plan.learning_rate) * (g_hat + decay), kMax));
  return NoTiny(Clip(w - change, kMax));
}

}  // namespace lns::lowering
