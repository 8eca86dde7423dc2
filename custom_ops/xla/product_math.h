// Products of codes on a datapath as XLA graphs; names agree with
// tf_lns/reference/product.py and core/product.h.
//
// A loop over vectors: its body adds the terms of a few vectors, written out, to an
// accumulator for each output and clamps. All of it is element by element over the
// outputs, so it becomes one fused loop that needs no more memory than the result.

#ifndef TF_LNS_XLA_PRODUCT_MATH_H_
#define TF_LNS_XLA_PRODUCT_MATH_H_

#include <cstdint>
#include <vector>

#include "core/product.h"
#include "xla/lns_math.h"

namespace lns::lowering {

// Codes with the terms along one axis. What is left of them for one term, in the shape
// `dims`, is broadcast against that of the other operand, of the same rank, by axes of
// size 1. Codes outside of their format count as 0.
struct Operand {
  XlaOp codes;
  int64_t axis;
  std::vector<int64_t> dims;
};

// A scale of the rank of the outputs, with axes of size 1. `axis` is that along which
// vectors lie, or -1 where they all have the same. What is no valid scale counts as 1.
struct ProductScale {
  XlaOp scale;
  int64_t axis = -1;
};

// Sizes of the outputs.
std::vector<int64_t> OutputDims(const Operand& a, const Operand& b);

// The product of `k` terms, F32. Where a scale changes along K, its size there is the
// number of vectors, and vectors are added in float32.
XlaOp Product(const ProductPlan& plan, const Operand& a, const Operand& b, int64_t k,
              const ProductScale& a_scale, const ProductScale& b_scale);

// The product with what happened inside: S32 accumulators, with bins along a last axis,
// and S64 counts.
struct ProductWithDetails {
  XlaOp product, accumulators, saturated, truncated;
};
ProductWithDetails ProductDetails(const ProductPlan& plan, const Operand& a,
                                  const Operand& b, int64_t k,
                                  const ProductScale& a_scale,
                                  const ProductScale& b_scale);

}  // namespace lns::lowering

#endif  // TF_LNS_XLA_PRODUCT_MATH_H_
