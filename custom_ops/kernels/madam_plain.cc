// The LNS-Madam step element by element: the fallback for any CPU, and what the tests
// hold the vectorised kernels against.

#include "kernels/madam_kernels.h"

namespace lns {
namespace {

template <typename Code>
int64_t StepCodes(const MadamPlan& plan, Code* codes, float* v, const float* g,
                  uint64_t index, int64_t n) {
  int64_t nonfinite = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float g_hat =
        NormalizedGradient(plan, FiniteGradient(g[i], &nonfinite), &v[i]);
    codes[i] = static_cast<Code>(StepCode(plan, codes[i], g_hat, index + i));
  }
  return nonfinite;
}

template <typename Code>
int64_t StepCodesCompact(const MadamPlan& plan, Code* codes, uint8_t* k, const float* g,
                         uint64_t index, int64_t n, int32_t* largest) {
  int64_t nonfinite = 0;
  int32_t top = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float finite = FiniteGradient(g[i], &nonfinite);
    const float g_hat = NormalizedGradientCompact(plan, finite, index + i, &k[i]);
    codes[i] = static_cast<Code>(StepCode(plan, codes[i], g_hat, index + i));
    top = std::max<int32_t>(top, k[i]);
  }
  *largest = top;
  return nonfinite;
}

int64_t Step(const MadamPlan& plan, void* codes, float* v, const float* g,
             uint64_t index, int64_t n) {
  return plan.format.bits <= 8
             ? StepCodes(plan, static_cast<int8_t*>(codes), v, g, index, n)
             : StepCodes(plan, static_cast<int16_t*>(codes), v, g, index, n);
}

int64_t StepCompact(const MadamPlan& plan, void* codes, uint8_t* k, const float* g,
                    uint64_t index, int64_t n, int32_t* largest) {
  return plan.format.bits <= 8 ? StepCodesCompact(plan, static_cast<int8_t*>(codes), k,
                                                  g, index, n, largest)
                               : StepCodesCompact(plan, static_cast<int16_t*>(codes), k,
                                                  g, index, n, largest);
}

void ShiftCompactBytes(uint8_t* k, int32_t shift, int64_t n) {
  for (int64_t i = 0; i < n; ++i) k[i] = ShiftCompact(k[i], shift);
}

int64_t Additive(const MadamPlan& plan, float* w, float* v, const float* g, int64_t n) {
  int64_t nonfinite = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float g_hat =
        NormalizedGradient(plan, FiniteGradient(g[i], &nonfinite), &v[i]);
    w[i] = AdditiveStep(plan, w[i], g_hat);
  }
  return nonfinite;
}

}  // namespace

double BiasCorrection(float beta, int64_t step) {
  double power = 1.0;
  double base = beta;
  for (uint64_t n = static_cast<uint64_t>(std::max<int64_t>(step, 0)); n > 0; n >>= 1) {
    if (n & 1) power *= base;
    base *= base;
  }
  return 1.0 - power;
}

CompactTables::CompactTables(float beta_f32) : eighths(&Tables::Of(8)) {
  const double beta = beta_f32;
  const int32_t unit = 1 << kCompactFractionBits;
  first = static_cast<int32_t>(std::floor(4.0 * std::log2(1.0 - beta)));
  for (int i = 0; i < kCompactEntries; ++i) {
    const double x = i + kCompactLowest;
    const double grown = beta + (1.0 - beta) * std::exp2((x - first) / 4.0);
    growth[i] = static_cast<int32_t>(
        std::nearbyint(std::max(4.0 * std::log2(grown), -1.0 * kBias) * unit));
    const int32_t rest = unit - 1 - (growth[i] & (unit - 1));
    growth_whole[i] = static_cast<uint8_t>((growth[i] >> kCompactFractionBits) + kBias);
    growth_rest_high[i] = static_cast<uint8_t>(rest >> 8);
    growth_rest_low[i] = static_cast<uint8_t>(rest & 255);
  }
  // Each of 16 buckets of the mantissa holds at most one of the 8 thresholds; the
  // addend puts that on a multiple of 2^20.
  for (uint32_t i = 0; i < 16; ++i) {
    const uint32_t begin = i << 19, end = begin + (1 << 19);
    uint32_t below = 0, inside = end;
    for (float threshold : eighths->threshold) {
      const uint32_t at = Bits(threshold) & kMantissaMask;
      if (at < begin) ++below;
      if (at >= begin && at < end) inside = at;
    }
    addend[i] = ((below + 1) << 20) - inside;
  }
}

MadamPlan MadamPlan::Make(const Format& format, float beta, float g_bound,
                          float learning_rate, float weight_decay, int64_t step,
                          uint64_t seed, Rounding rounding, bool round_gradient,
                          int32_t cap, int32_t floor) {
  MadamPlan plan;
  plan.format = format;
  plan.beta = beta;
  plan.g_bound = g_bound;
  const double corrected = BiasCorrection(beta, step);
  plan.correction = static_cast<float>(1.0 / corrected);
  plan.root = static_cast<float>(std::sqrt(corrected));
  plan.learning_rate = NoTiny(learning_rate);
  plan.rate = NoTiny(Clip(learning_rate, kLargestStep)) *
              static_cast<float>(format.base_factor);
  plan.weight_decay = NoTiny(weight_decay);
  plan.rounding = rounding;
  plan.round_gradient = round_gradient;
  plan.key = RandomKey(seed);
  plan.compact_key = RandomKey(seed ^ kCompactSeed);
  plan.cap = cap < 0 ? format.max_exponent() : cap;
  plan.floor = floor;
  return plan;
}

const MadamKernels kMadamPlain = {Step, StepCompact, ShiftCompactBytes, Additive};

}  // namespace lns
