#include "kernels/depthwise_kernels.h"

namespace lns {

DepthwisePlan::DepthwisePlan(const ProductPlan& plan) : plan(plan) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (plan.datapath.bins || plan.max_term > kMost) return;
  terms.assign(plan.term.begin(), plan.term.end());

  if (plan.a.base_factor > 8) return;
  const int top_p = plan.a.max_exponent() + plan.b.max_exponent();
  const int left = std::max((top_p >> plan.a.log2_base_factor()) + plan.shift, 0);
  top_shift = left - plan.shift;
  short_steps = true;
  for (int r = 0; r < plan.a.base_factor; ++r) {
    const int64_t step = plan.n[r] << std::min(left, 32);
    if (step > kMost) short_steps = false;
    steps[r] = static_cast<int32_t>(step);
  }
}

bool DepthwisePlan::Fits(int64_t taps) const {
  return !terms.empty() &&
         plan.largest + plan.max_sum(taps) <= std::numeric_limits<int32_t>::max();
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

void OutputPlain(const DepthwisePlan& plan, const DepthwiseOutput& output) {
  const bool short_b = plan.plan.b.bits <= 8;
  if (plan.plan.a.bits <= 8) {
    short_b ? OutputOf<int8_t, int8_t>(plan.plan, output)
            : OutputOf<int8_t, int16_t>(plan.plan, output);
  } else {
    short_b ? OutputOf<int16_t, int8_t>(plan.plan, output)
            : OutputOf<int16_t, int16_t>(plan.plan, output);
  }
}

void FinishRow(const ProductPlan& plan, const ProductBlock& block,
               const int32_t* sums) {
  FinishPlain(plan, sums, block.n, *block.row_scale, block.column_scale,
              block.column_scale_stride, block.add, block.product);
}

}  // namespace

const DepthwiseKernels kDepthwisePlain = {OutputPlain, FinishRow};

}  // namespace lns
