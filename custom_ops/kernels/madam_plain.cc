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

const MadamKernels kMadamPlain = {Step, StepCompact, ShiftCompactBytes, Additive};

}  // namespace lns
