// The LNS-Madam step on one weight, plain form. tf_lns/reference/: madam_step,
// additive_step.
//
// Every float step is one IEEE float32 operation (compile with -ffp-contract=off).
// Results below 2^-125 in magnitude count as zero, so nothing depends on denormals or
// on the flush mode.

#ifndef TF_LNS_CORE_MADAM_H_
#define TF_LNS_CORE_MADAM_H_

#include <algorithm>
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
constexpr int kCompactFractionBits = 16;
// Reach of the growth table: quarter octaves from v to (1-beta) g^2.
constexpr int kCompactLowest = -104;
constexpr int kCompactHighest = 23;
constexpr int kCompactEntries = kCompactHighest - kCompactLowest + 1;
// What is kept of k in a step, before ShiftCompact; g_hat sees all of it.
constexpr int kCompactLargest = 151;
// Bounds of the tensor's exponent. Gradients of at most 2^63 stay far below the
// highest.
constexpr int kCompactLowestExponent = -120;
constexpr int kCompactHighestExponent = 140;
constexpr uint64_t kCompactSeed = 0x5851F42D4C957F2Dull;
constexpr int32_t kNoExponent =
    std::numeric_limits<int32_t>::min();  // no gradient seen yet

LNS_INLINE float NoTiny(float x) { return std::fabs(x) < kTiny ? 0.0f : x; }

// x, or 0 where it is tiny, negative or NaN.
LNS_INLINE float Positive(float x) { return x >= kTiny ? x : 0.0f; }

LNS_INLINE float Clip(float x, float bound) {
  return std::min(std::max(x, -bound), bound);
}

// 1 - beta^step in float64; the power by repeated squaring, as every device does.
double BiasCorrection(float beta, int64_t step);

// What the one-byte second moment needs to know of beta: reference.compact_growth.
struct CompactTables {
  // growth[x + 104] = round(4 log2(beta + (1-beta) 2^((x-first)/4)) 2^Q), x the quarter
  // octaves from v to (1-beta) g^2
  int32_t growth[kCompactEntries];
  int32_t first;  // floor(4 log2(1-beta)), from g^2 to the v that it makes out of 0
  const Tables* eighths;  // of base factor 8

  // For the vectorised kernels. growth = 2^Q (growth_whole - bias) + 2^Q - 1 -
  // growth_rest: what is left of a whole step is compared with the random draw.
  static constexpr int kBias = 100;
  uint8_t growth_whole[kCompactEntries];
  uint8_t growth_rest_high[kCompactEntries];
  uint8_t growth_rest_low[kCompactEntries];
  // (bits + addend[bits >> 19 & 15]) >> 20 is 8 log2 rounded, 8 * 127 too high.
  uint32_t addend[16];

  explicit CompactTables(float beta);
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
  int32_t exponent = 0;  // of the tensor

  // `cap` < 0 means no cap. Values are those of reference.madam_step.
  static MadamPlan Make(const Format& format, float beta, float g_bound,
                        float learning_rate, float weight_decay, int64_t step,
                        uint64_t seed, Rounding rounding, bool round_gradient,
                        int32_t cap, int32_t floor);
};

// Non-finite elements and denormals become 0, huge ones are clipped so that a square is
// finite.
LNS_INLINE float FiniteGradient(float g, int64_t* nonfinite) {
  const uint32_t magnitude = Bits(g) & kMagnitudeMask;
  if (magnitude >= kInfBits) {
    ++*nonfinite;
    return 0.0f;
  }
  return magnitude < kMinNormalBits ? 0.0f : Clip(g, kLargestGradient);
}

// g_hat of a finite gradient; moves *v.
LNS_INLINE float NormalizedGradient(const MadamPlan& plan, float g, float* v) {
  const float square = Positive((1.0f - plan.beta) * (g * g));
  const float moment = Positive(plan.beta * *v) + square;
  *v = moment;
  if (moment == 0.0f) return 0.0f;
  return NoTiny(Clip(g / std::sqrt(moment * plan.correction), plan.g_bound));
}

// 8 log2|g| rounded: quarter octaves of g^2. g is finite and not zero.
LNS_INLINE int32_t GradientEighths(const CompactTables& tables, float g) {
  return NearestExponent(*tables.eighths, 8, Bits(g) & kMagnitudeMask);
}

// The tensor's exponent at its first non-zero gradient, one octave of headroom
// included.
LNS_INLINE int32_t FirstCompactExponent(const CompactTables& tables,
                                        float largest_gradient) {
  const int32_t top = GradientEighths(tables, largest_gradient) + tables.first;
  return std::max(-((-top) >> 2) + 1, kCompactLowestExponent);  // ceil(top / 4) + 1
}

// 16 random bits; four elements share a draw. reference.compact_draws.
LNS_INLINE uint32_t CompactDraw(const RandomKey& key, uint64_t index) {
  const uint64_t word = RandomBits(key, index / 4);
  return static_cast<uint32_t>((word | word << 32) >> (8 * (index % 4))) & 0xFFFFu;
}

// g_hat of a finite gradient; moves *k, 0..127 (a byte above counts as 0) to 0..151,
// until ShiftCompact has run over the tensor.
LNS_INLINE float NormalizedGradientCompact(const MadamPlan& plan, float g,
                                           uint64_t index, uint8_t* k_in_out) {
  const CompactTables& tables = *plan.compact;
  const int32_t k = *k_in_out <= 127 ? *k_in_out : 0;
  int32_t added = kCompactLowest;  // k of (1-beta) g^2
  if (g != 0.0f) {
    added = GradientEighths(tables, g) + tables.first - 4 * plan.exponent + 127;
    added = std::max(added, kCompactLowest);
  }
  int32_t grown = 0;
  if (k > 0) {
    const int32_t x = std::min(std::max(added - k, kCompactLowest), kCompactHighest);
    const int32_t u = static_cast<int32_t>(CompactDraw(plan.compact_key, index));
    const int32_t growth = tables.growth[x - kCompactLowest] + u;
    grown = std::max(k + (growth >> kCompactFractionBits), 1);
  }
  // A gradient far below the tensor's others still moves its weight, by g over the root
  // of the smallest v.
  grown = std::max(grown, g != 0.0f ? std::max(added, 1) : 0);
  *k_in_out = static_cast<uint8_t>(std::min(grown, kCompactLargest));
  if (grown == 0) return 0.0f;
  // 1 / sqrt(v / (1 - beta^t)), a normal number for every exponent that can be.
  const int32_t z = 127 - 4 * plan.exponent - grown;
  const float mantissa = tables.eighths->decode[z & 7] * plan.root;
  const float over_root =
      FromBits(Bits(mantissa) + (static_cast<uint32_t>(z >> 3) << 23));
  return NoTiny(Clip(g * over_root, plan.g_bound));
}

// By how many octaves the tensor's exponent must rise, given its largest k; 0 for none.
LNS_INLINE int32_t CompactShift(int32_t largest, int32_t exponent) {
  if (largest <= 127 && (largest == 0 || largest >= 115)) return 0;
  const int32_t shift = -((127 - largest) >> 2) + 1;  // ceil((largest - 127) / 4) + 1
  return std::max(shift, kCompactLowestExponent - exponent);
}

LNS_INLINE uint8_t ShiftCompact(uint8_t k, int32_t shift) {
  if (k == 0) return 0;
  return static_cast<uint8_t>(std::min(std::max(k - 4 * shift, 1), 127));
}

// The code after a step with g_hat. `index` is the flat index, for the random draw.
LNS_INLINE int32_t StepCode(const MadamPlan& plan, int32_t code, float g_hat,
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
LNS_INLINE float AdditiveStep(const MadamPlan& plan, float w, float g_hat) {
  constexpr float kMax = std::numeric_limits<float>::max();
  w = NoTiny(w);
  const float decay = NoTiny(Clip(plan.weight_decay * w, kMax));
  const float change = NoTiny(Clip(plan.learning_rate * (g_hat + decay), kMax));
  return NoTiny(Clip(w - change, kMax));
}

}  // namespace lns

#endif  // TF_LNS_CORE_MADAM_H_
