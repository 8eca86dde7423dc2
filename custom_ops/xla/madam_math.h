// The LNS-Madam step as an XLA graph; names agree with tf_lns/reference.py and
// core/madam.h.

#ifndef TF_LNS_XLA_MADAM_MATH_H_
#define TF_LNS_XLA_MADAM_MATH_H_

#include "core/madam.h"
#include "xla/lns_math.h"

namespace lns::lowering {

// What one step does, apart from the data. Every XlaOp is a scalar.
struct StepPlan {
  Format format;
  float beta = 0.999f;
  float g_bound = 10.0f;
  Rounding rounding = Rounding::kNearest;
  bool round_gradient = false;

  XlaOp learning_rate;
  XlaOp weight_decay;
  XlaOp corrected;  // 1 - beta^t, F64
  XlaOp seed;
  XlaOp cap;    // S32; max_exponent for none
  XlaOp floor;  // S32; -1 for none
};

// The state of a one-byte second moment: k as S32 and the tensor's exponent, S32.
struct CompactMoment {
  XlaOp k;
  XlaOp exponent;
};

// Results below 2^-125 in magnitude as zero.
XlaOp NoTiny(XlaOp x);

// x, or 0 where it is tiny, negative or NaN.
XlaOp Positive(XlaOp x);

// 1 - beta^step, F64; `step` is an S64 scalar, at least 1.
XlaOp BiasCorrection(float beta, XlaOp step);

// reference.finite_gradient, without the count.
XlaOp FiniteGradient(XlaOp gradient);

// g_hat of a finite gradient; moves the second moment.
XlaOp NormalizedGradient(const StepPlan& plan, XlaOp gradient, XlaOp* second_moment);
XlaOp NormalizedGradientCompact(const StepPlan& plan, XlaOp gradient,
                                CompactMoment* second_moment);

// Codes (S32) after a step with g_hat: reference.step_in_codes and apply_step.
XlaOp StepInCodes(const StepPlan& plan, XlaOp g_hat, XlaOp codes, XlaOp weight_decay);
XlaOp ApplyStep(const StepPlan& plan, XlaOp codes, XlaOp steps);
XlaOp MadamStep(const StepPlan& plan, XlaOp g_hat, XlaOp codes);

// float32 weights after a step with g_hat: the end of reference.additive_step.
XlaOp AdditiveStep(const StepPlan& plan, XlaOp g_hat, XlaOp weights);

}  // namespace lns::lowering

#endif  // TF_LNS_XLA_MADAM_MATH_H_
