// Products of codes on a datapath as XLA graphs; names agree with tf_lns/reference and
// core/product.h.

#ifndef TF_LNS_XLA_PRODUCT_MATH_H_
#define TF_LNS_XLA_PRODUCT_MATH_H_

#include "core/product.h"
#include "xla/lns_math.h"

namespace lns::lowering {

// a [B, M, K] times b [B, K, N], codes in S32. Scales are [B, M or 1, G or 1] and [B, G
// or 1, N or 1], valid; with G > 1 each vector along K has scales of its own.
struct ProductResult {
  XlaOp values;                // float32 [B, M, N]
  XlaOp accumulators;          // S32 [B, M, N, bins]; of the last vector if G > 1
  XlaOp saturated, truncated;  // S64 scalars, if they were asked for
};
ProductResult Matmul(const ProductPlan& plan, XlaOp a, XlaOp b, XlaOp a_scale,
                     XlaOp b_scale, bool with_counts);

}  // namespace lns::lowering

#endif  // TF_LNS_XLA_PRODUCT_MATH_H_
