// The LNS-Madam step with AVX-512 VBMI: that of madam_avx512.cc, and a faster one for
// the one-byte second moment, whose table of 128 entries fits byte permutes.

#if defined(__x86_64__)

#ifdef __GNUC__
// GCC 12 takes the undefined third operand of its own intrinsics for a fault.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "kernels/madam_kernels.h"

namespace lns {
namespace {
#include "kernels/madam_avx512.inc"

struct Constants;

LANES_INLINE __m512i SetByte(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }

// A table of 128 bytes.
struct ByteTable {
  LANES_INLINE explicit ByteTable(const uint8_t* table)
      : low(_mm512_loadu_si512(table)), high(_mm512_loadu_si512(table + 64)) {}
  LANES_INLINE __m512i operator[](__m512i index) const {
    return _mm512_permutex2var_epi8(low, index, high);
  }
  __m512i low, high;
};

template <typename Code>
int64_t FastStepCompact(const Constants& c, Code* codes, uint8_t* k, const float* g,
                        uint64_t index, int64_t n, int32_t* largest);

#define LANES_HAVE_FAST_COMPACT
#include "kernels/madam_vector.inc"

// 64 bytes of v.
struct Moment {
  __m512i k;
  bool doubtful;
};

// Moves 64 bytes of v; all in byte lanes but the logarithms. In NormalizedCompactLanes
// the same stands in 32-bit lanes.
LANES_INLINE Moment MoveMoment(const Constants& c, __m512i old, const float* g,
                               uint64_t index, const ByteTable& whole,
                               const ByteTable& rest_high, const ByteTable& rest_low) {
  const MadamPlan& plan = c.plan;
  old = _mm512_max_epi8(old, _mm512_setzero_si512());
  __m512i eighths[4];
  for (int i = 0; i < 4; ++i) {
    const I magnitude = And(AsInt(Load(g + 16 * i)), SetInt(kMagnitudeMask));
    eighths[i] = ShiftRight<20>(
        Add(magnitude, Lookup16(plan.compact->addend, ShiftRight<19>(magnitude))));
  }
  __m512i pairs[2] = {_mm512_packus_epi32(eighths[0], eighths[1]),
                      _mm512_packus_epi32(eighths[2], eighths[3])};
  // NaN, Inf, or as large as the gradients that are clipped, 2^63.
  const bool doubtful = _mm512_cmpge_epu16_mask(_mm512_max_epu16(pairs[0], pairs[1]),
                                                SetWide(8 * (127 + 63))) != 0;
  for (__m512i& pair : pairs) {
    pair = _mm512_add_epi16(pair, SetWide(c.added_base - kCompactLowest));
  }
  // k of (1-beta) g^2, less the lowest: fills the byte, as 151 + 104 = 255.
  const __m512i added = _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
      _mm512_packus_epi16(pairs[0], pairs[1]));
  const __m512i x = _mm512_min_epu8(_mm512_subs_epu8(added, old), SetByte(127));
  // Four elements share a draw: its bytes, and its bytes rotated by one.
  const I low = RandomLanes(plan.compact_key, Iota(static_cast<uint32_t>(index >> 2)));
  const I high = _mm512_ror_epi32(low, 8);
  const __m512i threshold = rest_high[x];
  const __mmask64 carry =
      _mm512_cmpgt_epu8_mask(high, threshold) |
      _mm512_mask_cmpgt_epu8_mask(_mm512_cmpeq_epu8_mask(high, threshold), low,
                                  rest_low[x]);
  __m512i grown = _mm512_adds_epu8(old, whole[x]);
  grown = _mm512_mask_sub_epi8(grown, carry, grown, SetByte(-1));
  grown = _mm512_subs_epu8(grown, SetByte(CompactTables::kBias));
  grown = _mm512_maskz_max_epu8(_mm512_test_epi8_mask(old, old), grown, SetByte(1));
  grown = _mm512_max_epu8(grown, _mm512_subs_epu8(added, SetByte(-kCompactLowest)));
  return {grown, doubtful};
}

// Steps of 16 codes, in the direction of the code.
template <bool kDecay, bool kStochastic>
LANES_INLINE I CompactStepLanes(const Constants& c, __m128i k, F g, I sign,
                                uint64_t index, M* doubtful) {
  const MadamPlan& plan = c.plan;
  const I wide = _mm512_cvtepu8_epi32(k);
  const F over_root = AsFloat(Sub(Lookup16(c.over_root, wide), ShiftLeft<20>(wide)));
  if (kDecay || kStochastic) {
    g = Keep(_mm512_test_epi32_mask(wide, wide), FlushDenormals(g));
  }
  // The smaller of two magnitudes, with the sign of the first: a clip.
  F step = _mm512_range_ps(Mul(g, over_root), Set(plan.g_bound), 2);
  if (kDecay) step = Add(step, AsFloat(Xor(AsInt(Set(plan.weight_decay)), sign)));
  step = Mul(step, Set(plan.rate));
  if (kStochastic) {
    const F u = UniformLanes(plan, index);
    // A draw of 0 makes numbers below kTiny matter.
    *doubtful = Either(*doubtful, Not(CompareGe(u, Set(0x1p-24f))));
    step = _mm512_range_ps(step, Set(kLargestStep), 2);
    step = Floor(Add(AsFloat(Xor(AsInt(step), sign)), u));
  }
  return ToIntEven(step);
}

template <bool kDecay, bool kStochastic, typename Code>
int64_t FastLoopCompact(const Constants& c, Code* codes, uint8_t* k, const float* g,
                        uint64_t index, int64_t n, int32_t* largest) {
  const MadamPlan& plan = c.plan;
  const ByteTable whole(plan.compact->growth_whole);
  const ByteTable rest_high(plan.compact->growth_rest_high);
  const ByteTable rest_low(plan.compact->growth_rest_low);
  const bool capped = plan.cap < plan.format.max_exponent();
  const W top = SetWide(plan.format.max_code()), cap = SetWide(plan.cap + 1);
  int64_t nonfinite = 0;
  __m512i largest_k = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 64) {
    Prefetch(g + i + kAhead, 64 * sizeof(float));
    Prefetch(codes + i + kAhead, 64 * sizeof(Code));
    Prefetch(k + i + kAhead, 64);
    const Moment moment = MoveMoment(c, _mm512_loadu_si512(k + i), g + i, index + i,
                                     whole, rest_high, rest_low);
    const __m128i quarter[4] = {
        _mm512_castsi512_si128(moment.k), _mm512_extracti32x4_epi32(moment.k, 1),
        _mm512_extracti32x4_epi32(moment.k, 2), _mm512_extracti32x4_epi32(moment.k, 3)};
    M doubtful = NoLanes();
    I steps[4];
    for (int j = 0; j < 4; ++j) {
      const int64_t at = i + 16 * j;
      const I sign = kDecay || kStochastic ? SignBits(codes + at) : SetInt(0);
      steps[j] = CompactStepLanes<kDecay, kStochastic>(c, quarter[j], Load(g + at),
                                                       sign, index + at, &doubtful);
    }
    if (__builtin_expect(moment.doubtful || Any(doubtful), 0)) {
      nonfinite += ExactStepCompact(c, codes + i, k + i, g + i, index + i, 64);
      largest_k = _mm512_max_epu8(largest_k, _mm512_loadu_si512(k + i));
      continue;
    }
    _mm512_storeu_si512(k + i, moment.k);
    largest_k = _mm512_max_epu8(largest_k, moment.k);
    const __mmask64 moves = _mm512_test_epi8_mask(moment.k, moment.k);
    for (int j = 0; j < 2; ++j) {
      const int64_t at = i + 32 * j;
      const W old = LoadWide(codes + at);
      W step = PackSaturated(steps[2 * j], steps[2 * j + 1]);
      step = MaxWide(step, SetWide(-32767));
      if (kStochastic) step = NegateWhereNegative(step, old);
      if (!kDecay && !kStochastic) {  // else done to g
        step = _mm512_maskz_mov_epi16(static_cast<__mmask32>(moves >> 32 * j), step);
      }
      StoreWide(codes + at, MoveCodes(old, step, top, cap, capped));
    }
  }
  alignas(64) uint8_t bytes[64];
  _mm512_store_si512(bytes, largest_k);
  *largest = LargestByte(bytes, 64);
  return nonfinite;
}

template <typename Code>
int64_t FastStepCompact(const Constants& c, Code* codes, uint8_t* k, const float* g,
                        uint64_t index, int64_t n, int32_t* largest) {
  const bool stochastic = c.plan.rounding == Rounding::kStochastic;
  auto* loop = c.plan.weight_decay == 0.0f
                   ? (stochastic ? FastLoopCompact<false, true, Code>
                                 : FastLoopCompact<false, false, Code>)
                   : (stochastic ? FastLoopCompact<true, true, Code>
                                 : FastLoopCompact<true, false, Code>);
  return loop(c, codes, k, g, index, n, largest);
}

}  // namespace

const MadamKernels kMadamAvx512Vbmi = {Step, StepCompact, ShiftCompactBytes, Additive};

}  // namespace lns

#endif  // defined(__x86_64__)
