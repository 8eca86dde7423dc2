#include "kernels/depthwise_kernels.h"

namespace lns {

DepthwisePlan::DepthwisePlan(const ProductPlan& plan) : plan(plan) {
  const Datapath& datapath = plan.datapath;
  for (int64_t term : plan.term) max_term = std::max(max_term, term);
  if (datapath.bins || max_term > std::numeric_limits<int32_t>::max()) return;
  terms.assign(plan.term.begin(), plan.term.end());

  const int factor = plan.a.base_factor, g = plan.a.log2_base_factor();
  if (factor > 8) return;
  const int rest_bits = g - datapath.lut_bits;
  const int unit = plan.lsb + datapath.fraction_bits + g;  // a step's exponent q
  const int top = (plan.a.max_exponent() + plan.b.max_exponent()) >> g;
  const int left = std::max(top - unit, 0);
  top_shift = left + unit;
  short_steps = true;
  for (int r = 0; r < factor; ++r) {
    const int64_t n = plan.entry[r >> rest_bits] * (factor + r % (1 << rest_bits));
    const int64_t step = n << std::min(left, 32);
    if (step > std::numeric_limits<int32_t>::max()) short_steps = false;
    steps[r] = static_cast<int32_t>(step);
  }
}

bool DepthwisePlan::Fits(int64_t taps) const {
  if (terms.empty()) return false;
  const int64_t in_a_vector = std::min(taps, plan.datapath.vector_size);
  return plan.largest + in_a_vector * max_term <= std::numeric_limits<int32_t>::max();
}

namespace {

template <typename A, typename B>
void OutputOf(const ProductPlan& plan, const DepthwiseOutput& output) {
  const A* x = static_cast<const A*>(output.x);
  const B* kernel = static_cast<const B*>(output.kernel);
  const int64_t channels = output.channels, all = channels * plan.bins;
  std::vector<int64_t> sums(all);
  std::fill(output.accumulators, output.accumulators + all, 0);
  for (int64_t begin = 0; begin < output.taps; begin += plan.datapath.vector_size) {
    const int64_t end = std::min(output.taps, begin + plan.datapath.vector_size);
    std::fill(sums.begin(), sums.end(), 0);
    for (int64_t t = begin; t < end; ++t) {
      if (output.offsets[t] < 0) continue;
      const A* a = x + output.offsets[t];
      const B* b = kernel + t * output.kernel_stride;
      for (int64_t c = 0; c < channels; ++c) {
        const int left = a[c], right = b[c];
        if (left == 0 || right == 0) continue;
        const int p = std::abs(left) + std::abs(right) - 2;
        const int64_t term = plan.term[p];
        sums[c * plan.bins + plan.bin[p]] += (left ^ right) < 0 ? -term : term;
      }
    }
    for (int64_t i = 0; i < all; ++i) {
      const int64_t exact = output.accumulators[i] + sums[i];
      output.accumulators[i] =
          static_cast<int32_t>(std::max(-plan.largest, std::min(plan.largest, exact)));
    }
  }
}

}  // namespace

void DepthwisePlain(const DepthwisePlan& plan, const DepthwiseOutput& output) {
  const bool short_b = plan.plan.b.bits <= 8;
  if (plan.plan.a.bits <= 8) {
    short_b ? OutputOf<int8_t, int8_t>(plan.plan, output)
            : OutputOf<int8_t, int16_t>(plan.plan, output);
  } else {
    short_b ? OutputOf<int16_t, int8_t>(plan.plan, output)
            : OutputOf<int16_t, int16_t>(plan.plan, output);
  }
}

}  // namespace lns
