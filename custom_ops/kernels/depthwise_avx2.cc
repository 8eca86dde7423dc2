#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/depthwise_kernels.h"

namespace lns {
namespace {

#include "kernels/product_lanes_avx2.inc"
// After the lanes.
#include "kernels/product_finish.inc"

inline __m256i LoadCodes(const int8_t* codes) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
}

inline __m256i LoadCodes(const int16_t* codes) {
  return _mm256_cvtepi16_epi32(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
}

// Terms by a permute of 8 steps and a shift.
struct ByShift {
  __m256i steps, top_shift, octave_bits, within;

  explicit ByShift(const DepthwisePlan& plan)
      : steps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(plan.steps))),
        top_shift(_mm256_set1_epi32(plan.top_shift)),
        octave_bits(_mm256_set1_epi32(plan.plan.a.log2_base_factor())),
        within(_mm256_set1_epi32(plan.plan.a.base_factor - 1)) {}

  __m256i operator()(__m256i p) const {
    const __m256i step =
        _mm256_permutevar8x32_epi32(steps, _mm256_and_si256(p, within));
    const __m256i octave = _mm256_srav_epi32(p, octave_bits);
    return _mm256_srlv_epi32(step, _mm256_sub_epi32(top_shift, octave));
  }
};

// Terms by a gather, for any base factor.
struct ByTable {
  const int32_t* terms;

  explicit ByTable(const DepthwisePlan& plan) : terms(plan.terms.data()) {}

  __m256i operator()(__m256i p) const {
    // Negative where a code is zero; what is read then does not count.
    return _mm256_i32gather_epi32(terms, _mm256_max_epi32(p, _mm256_setzero_si256()),
                                  4);
  }
};

// kBlocks * kLanes channels from `first` on.
template <int kBlocks, typename A, typename B, typename Terms>
void Channels(const DepthwisePlan& plan, const DepthwiseOutput& output,
              const Terms& terms, int64_t first) {
  const A* x = static_cast<const A*>(output.x) + first;
  const B* kernel = static_cast<const B*>(output.kernel) + first;
  const __m256i largest = _mm256_set1_epi32(static_cast<int32_t>(plan.plan.largest));
  const __m256i least = _mm256_sub_epi32(_mm256_setzero_si256(), largest);
  const __m256i two = _mm256_set1_epi32(2);
  __m256i acc[kBlocks];
  for (__m256i& a : acc) a = _mm256_setzero_si256();
  const int64_t size = plan.plan.datapath.vector_size;
  for (int64_t begin = 0; begin < output.taps; begin += size) {
    const int64_t end = std::min(output.taps, begin + size);
    for (int64_t t = begin; t < end; ++t) {
      if (output.offsets[t] < 0) continue;
      const A* a = x + output.offsets[t];
      const B* b = kernel + t * output.kernel_stride;
      for (int i = 0; i < kBlocks; ++i) {
        const __m256i left = LoadCodes(a + i * kLanes);
        const __m256i right = LoadCodes(b + i * kLanes);
        const __m256i p = _mm256_sub_epi32(
            _mm256_add_epi32(_mm256_abs_epi32(left), _mm256_abs_epi32(right)), two);
        const __m256i term =
            _mm256_sign_epi32(_mm256_sign_epi32(terms(p), left), right);
        acc[i] = _mm256_add_epi32(acc[i], term);
      }
    }
    for (__m256i& a : acc) {
      a = _mm256_max_epi32(least, _mm256_min_epi32(largest, a));
    }
  }
  for (int i = 0; i < kBlocks; ++i) {
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(output.accumulators + first + i * kLanes), acc[i]);
  }
}

template <typename A, typename B, typename Terms>
void OutputWith(const DepthwisePlan& plan, const DepthwiseOutput& output) {
  const Terms terms(plan);
  int64_t c = 0;
  for (; c + 4 * kLanes <= output.channels; c += 4 * kLanes) {
    Channels<4, A, B>(plan, output, terms, c);
  }
  for (; c + kLanes <= output.channels; c += kLanes) {
    Channels<1, A, B>(plan, output, terms, c);
  }
  if (c == output.channels) return;
  DepthwiseOutput rest = output;
  rest.x = static_cast<const A*>(output.x) + c;
  rest.kernel = static_cast<const B*>(output.kernel) + c;
  rest.accumulators += c;
  rest.channels -= c;
  kDepthwisePlain.output(plan, rest);
}

template <typename A, typename B>
void OutputOf(const DepthwisePlan& plan, const DepthwiseOutput& output) {
  plan.short_steps ? OutputWith<A, B, ByShift>(plan, output)
                   : OutputWith<A, B, ByTable>(plan, output);
}

void OutputAvx2(const DepthwisePlan& plan, const DepthwiseOutput& output) {
  const bool short_b = plan.plan.b.bits <= 8;
  if (plan.plan.a.bits <= 8) {
    short_b ? OutputOf<int8_t, int8_t>(plan, output)
            : OutputOf<int8_t, int16_t>(plan, output);
  } else {
    short_b ? OutputOf<int16_t, int8_t>(plan, output)
            : OutputOf<int16_t, int16_t>(plan, output);
  }
}

void FinishRow(const ProductPlan& plan, const ProductBlock& block,
               const int32_t* sums) {
  Finish(plan, block).Row(0, 0, block.n, sums, 0);
}

}  // namespace

const DepthwiseKernels kDepthwiseAvx2 = {OutputAvx2, FinishRow};

}  // namespace lns

#endif  // defined(__x86_64__)
