// Depthwise convolutions of codes: many channels side by side, few terms each. All
// implementations give the same accumulators.

#ifndef TF_LNS_KERNELS_DEPTHWISE_KERNELS_H_
#define TF_LNS_KERNELS_DEPTHWISE_KERNELS_H_

#include <cstdint>
#include <vector>

#include "core/product.h"
#include "kernels/product_kernels.h"

namespace lns {

// One output of some neighbouring channels, each with a filter of its own. Codes are
// int8_t up to 8 bits, int16_t above; strides and offsets count elements.
struct DepthwiseOutput {
  const void* x = nullptr;
  const int64_t* offsets = nullptr;  // of each tap's first channel; -1 for padding
  const void* kernel = nullptr;      // of tap t at t * kernel_stride
  int64_t kernel_stride = 0;
  int64_t taps = 0, channels = 0;
  int32_t* accumulators = nullptr;  // [channels, plan.bins]
};

// A plan and what the vectorised loops need of it.
struct DepthwisePlan {
  const ProductPlan& plan;
  std::vector<int32_t> terms;  // plan.term, where it fits

  // Where a term is steps[r] >> (top_shift - q), all in 32 bits.
  bool short_steps = false;
  int32_t steps[8] = {};
  int32_t top_shift = 0;

  explicit DepthwisePlan(const ProductPlan& plan);

  // Whether 32 bits hold an accumulator and the sum of a vector in between.
  bool Fits(int64_t taps) const;
};

struct DepthwiseKernels {
  void (*output)(const DepthwisePlan& plan, const DepthwiseOutput& output);

  // The values of neighbouring outputs, as the only row of a block. `sums` may be read
  // up to a multiple of 16.
  void (*finish)(const ProductPlan& plan, const ProductBlock& block,
                 const int32_t* sums);
};

// For any plan.
extern const DepthwiseKernels kDepthwisePlain;

#if defined(__x86_64__)
// For plans that fit, without bins.
extern const DepthwiseKernels kDepthwiseAvx2;
#endif

}  // namespace lns

#endif  // TF_LNS_KERNELS_DEPTHWISE_KERNELS_H_
