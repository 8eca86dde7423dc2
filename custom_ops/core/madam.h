// The LNS-Madam step on one weight, plain form. tf_lns/reference.py: madam_step,
// additive_step.
//
// Every float step is one IEEE float32 operation (compile with -ffp-contract=off).
// Results below 2^-125 in magnitude count as zero, so nothing depends on denormals or
// on the flush mode.

#ifndef TF_LNS_CORE_MADAM_H_
#define TF_LNS_CORE_MADAM_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/codec.h"
#include "core/format.h"
#include "core/random.h"

namespace lns {

constexpr float kTiny = 0x1p-125f;
constexpr float kLargestGradient = 0x1p63f;
constexpr float kLargestStep = 65536.0f;
constexpr int kCompactFractionBits = 20;
constexpr int kCompactReach = 256;  // tables over d in -256..256
constexpr uint64_t kCompactSeed = 0x5851F42D4C957F2Dull;
constexpr int32_t kNoExponent =
    std::numeric_limits<int32_t>::min();  // no gradient seen yet

inline float NoTiny(float x) { return std::fabs(x) < kTiny ? 0.0f : x; }

inline float Clip(float x, float bound) { return std::min(std::max(x, -bound), bound); }

// 1 - beta^step in float64; the power by repeated squaring, as every device does.
inline double BiasCorrection(float beta, int64_t step) {
  double power = 1.0;
  double base = beta;
  for (uint64_t n = static_cast<uint64_t>(std::max<int64_t>(step, 0)); n > 0; n >>= 1) {
    if (n & 1) power *= base;
    base *= base;
  }
  return 1.0 - power;
}

// Tables of the one-byte second moment over d, the quarter octaves from v to g^2.
struct CompactTables {
  // growth[d + 256] = round(4 log2(beta + (1-beta) 2^(d/4)) 2^Q)
  std::array<int32_t, 2 * kCompactReach + 1> growth;
  // over_root[d + 256] = float32(2^(d/8) / sqrt(beta + (1-beta) 2^(d/4)))
  std::array<float, 2 * kCompactReach + 1> over_root;
  int32_t decay;  // round(4 log2(beta) 2^Q), growth where g = 0
  int32_t first;  // round(4 log2(1-beta)), from g^2 to v where v was 0

  explicit CompactTables(float beta_f32) {
    const double beta = beta_f32;
    const double unit = 1 << kCompactFractionBits;
    for (int d = -kCompactReach; d <= kCompactReach; ++d) {
      const double grown = beta + (1.0 - beta) * std::exp2(d / 4.0);
      growth[d + kCompactReach] =
          static_cast<int32_t>(std::nearbyint(4.0 * std::log2(grown) * unit));
      over_root[d + kCompactReach] =
          static_cast<float>(std::exp2(d / 8.0) / std::sqrt(grown));
    }
    decay = static_cast<int32_t>(std::nearbyint(4.0 * std::log2(beta) * unit));
    first = static_cast<int32_t>(std::nearbyint(4.0 * std::log2(1.0 - beta)));
  }
};

// What one step does, apart from the data.
struct MadamPlan {
  Format format;
  float beta = 0.999f;
  float g_bound = 10.0f;
  float correction = 1.0f;  // float32(1 / (1 - beta^t))
  float learning_rate = 0.0f;
  float rate = 0.0f;  // learning rate times base factor: codes per unit of g_hat
  float weight_decay = 0.0f;
  Rounding rounding = Rounding::kNearest;
  bool round_gradient = false;
  RandomKey key;
  // Largest exponent that a weight may grow to; max_exponent for none.
  int32_t cap = 0;
  // With sign crossing the exponent at which a weight changes sign; -1 for none.
  int32_t floor = -1;

  // One-byte second moment only.
  const CompactTables* compact = nullptr;
  RandomKey compact_key;
  float root = 1.0f;     // float32(sqrt(1 - beta^t))
  float start = 1.0f;    // float32(sqrt((1 - beta^t) / (1 - beta)))
  int32_t exponent = 0;  // of the tensor

  // `cap` < 0 means no cap. Values are those of reference.madam_step.
  static MadamPlan Make(const Format& format, float beta, float g_bound,
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
    plan.start =
        static_cast<float>(std::sqrt(corrected / (1.0 - static_cast<double>(beta))));
    plan.learning_rate = learning_rate;
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
};

// Non-finite elements and denormals become 0, huge ones are clipped so that a square is
// finite.
inline float FiniteGradient(float g, int64_t* nonfinite) {
  const uint32_t magnitude = Bits(g) & kMagnitudeMask;
  if (magnitude >= kInfBits) {
    ++*nonfinite;
    return 0.0f;
  }
  return magnitude < kMinNormalBits ? 0.0f : Clip(g, kLargestGradient);
}

// g_hat of a finite gradient; moves *v.
inline float NormalizedGradient(const MadamPlan& plan, float g, float* v) {
  const float square = NoTiny((1.0f - plan.beta) * (g * g));
  const float moment = NoTiny(plan.beta * *v) + square;
  *v = moment;
  if (moment == 0.0f) return 0.0f;
  return NoTiny(Clip(g / std::sqrt(moment * plan.correction), plan.g_bound));
}

// 8 log2|g| rounded: quarter octaves of g^2. g is finite and not zero.
inline int32_t GradientEighths(float g) {
  return NearestExponent(Tables::Of(8), 8, Bits(g) & kMagnitudeMask);
}

// The tensor's exponent at its first non-zero gradient, one octave of headroom
// included.
inline int32_t FirstCompactExponent(const CompactTables& tables,
                                    float largest_gradient) {
  const int32_t top = GradientEighths(largest_gradient) + tables.first;
  return -((-top) >> 2) + 1;  // ceil(top / 4) + 1
}

// g_hat of a finite gradient; moves *k, an unsigned byte that may exceed 127 until
// ShiftCompact has run over the tensor.
inline float NormalizedGradientCompact(const MadamPlan& plan, float g, uint64_t index,
                                       uint8_t* k_in_out) {
  const CompactTables& tables = *plan.compact;
  const int32_t k = *k_in_out;
  const bool nonzero = g != 0.0f;
  if (!nonzero && k == 0) return 0.0f;
  const int32_t kg = nonzero ? GradientEighths(g) - 4 * plan.exponent + 127 : 0;
  int32_t grown;
  float size = 0.0f;
  if (k > 0) {
    const int32_t d =
        std::min(std::max(kg - k, -kCompactReach), kCompactReach) + kCompactReach;
    const int32_t u = static_cast<int32_t>(RandomBits(plan.compact_key, index) >> 12);
    const int32_t growth = nonzero ? tables.growth[d] : tables.decay;
    grown =
        std::max(1, ((k << kCompactFractionBits) + growth + u) >> kCompactFractionBits);
    if (nonzero) size = tables.over_root[d] * plan.root;
  } else {
    grown = std::max(1, kg + tables.first);
    size = plan.start;
  }
  *k_in_out = static_cast<uint8_t>(std::min(grown, 255));
  size = std::min(size, plan.g_bound);
  return g < 0.0f ? -size : size;
}

// By how many octaves the tensor's exponent must rise, given its largest k; 0 for none.
inline int32_t CompactShift(int32_t largest) {
  if (largest <= 127 && (largest == 0 || largest >= 115)) return 0;
  return -((127 - largest) >> 2) + 1;  // ceil((largest - 127) / 4) + 1
}

inline uint8_t ShiftCompact(uint8_t k, int32_t shift) {
  if (k == 0) return 0;
  return static_cast<uint8_t>(std::min(std::max(k - 4 * shift, 1), 127));
}

// The code after a step with g_hat. `index` is the flat index, for the random draw.
inline int32_t StepCode(const MadamPlan& plan, int32_t code, float g_hat,
                        uint64_t index) {
  if (code == 0) return 0;
  if (plan.round_gradient) g_hat = std::nearbyint(g_hat);
  int32_t exponent = (code < 0 ? -code : code) - 1;
  float decay = plan.weight_decay;
  if (plan.floor >= 0) {
    exponent = std::max(exponent, plan.floor);
    if (exponent <= plan.floor + plan.format.base_factor) decay = 0.0f;
  }
  const float toward_zero = (code < 0 ? -g_hat : g_hat) + decay;
  float delta = NoTiny(Clip(plan.rate * toward_zero, kLargestStep));
  if (plan.rounding == Rounding::kStochastic) {
    const float u = static_cast<float>(RandomBits(plan.key, index) >> 8) * 0x1p-24f;
    delta = std::floor(delta + u);
  } else {
    delta = std::nearbyint(delta);
  }
  int32_t moved = exponent - static_cast<int32_t>(delta);
  bool negative = code < 0;
  if (plan.floor >= 0 && moved < plan.floor) {
    moved = std::min(2 * plan.floor - moved, plan.floor + plan.format.base_factor);
    negative = !negative;
  }
  moved = std::min(std::max(moved, 0), plan.format.max_exponent());
  moved = std::min(moved, std::max(plan.cap, exponent));
  return negative ? -(moved + 1) : moved + 1;
}

// The float32 step of a variable that is no LNS weight.
inline float AdditiveStep(const MadamPlan& plan, float w, float g_hat) {
  constexpr float kMax = std::numeric_limits<float>::max();
  w = NoTiny(w);
  const float decay = NoTiny(Clip(plan.weight_decay * w, kMax));
  const float change = NoTiny(Clip(plan.learning_rate * (g_hat + decay), kMax));
  return NoTiny(Clip(w - change, kMax));
}

}  // namespace lns

#endif  // TF_LNS_CORE_MADAM_H_
