// The bit-true product of codes on a datapath: tf_lns/reference/product.py is the
// definition; names agree.
//
// All that a datapath does to one pair of codes depends on the sum of their exponents p
// alone, so a plan is three tables over p, and the loop is: look up, sign, add, clamp.

#ifndef TF_LNS_CORE_PRODUCT_H_
#define TF_LNS_CORE_PRODUCT_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/format.h"
#include "core/product_floats.h"
#include "core/product_planes.h"

namespace lns {

constexpr int64_t kMaxVectorSize = int64_t{1} << 20;

struct Datapath {
  int lut_bits = 0;  // m, at most log2(base factor)
  int accumulator_bits = 24;
  int headroom_bits = 4;
  int fraction_bits = 8;
  int64_t vector_size = 16;
  bool bins = false;

  // An empty string where it is valid for a base factor, else what is wrong.
  std::string Error(int base_factor) const;
};

struct ProductPlan {
  Format a, b;  // of one base factor
  Datapath datapath;

  int lsb = 0;                 // weight of the accumulator's last bit
  int64_t largest = 0;         // the accumulator holds -largest..largest
  int bins = 1;                // accumulators per output
  std::vector<int64_t> entry;  // T[h]
  // Over p: magnitude of the term (at most 2^32), its bin, whether it lost bits.
  std::vector<int64_t> term;
  std::vector<uint16_t> bin;
  std::vector<uint8_t> lost;
  int64_t max_term = 0;

  // A term is n[r] shifted left by q + shift, bits lost: towards zero.
  std::vector<int64_t> n;
  int shift = 0;

  BytePlanes planes;
  FloatTerms floats;
  ScaledTerms scaled;

  ProductPlan() = default;
  ProductPlan(const Format& a, const Format& b, const Datapath& datapath);

  // Exponent that a sum of accumulators, or the one accumulator, is shifted by.
  LNS_INLINE int value_exponent() const {
    return datapath.bins ? lsb - datapath.fraction_bits : lsb;
  }

  // A bound of |sum| of a vector in a product of k terms.
  LNS_INLINE int64_t max_sum(int64_t k) const {
    return max_term * std::max<int64_t>(1, std::min(k, datapath.vector_size));
  }

  // What the accumulators of one output stand for, before the scales.
  LNS_INLINE int64_t Total(const int32_t* accumulators) const {
    if (!datapath.bins) return accumulators[0];
    int64_t total = 0;
    for (int h = 0; h < bins; ++h) total += entry[h] * accumulators[h];
    return total;
  }
};

// float32(a * b) as a double, where a denormal survives whatever the flush mode.
LNS_INLINE double ScaleProduct(float a, float b) {
  const double product = static_cast<double>(a) * b;
  if (product >= 0x1p128 - 0x1p103) return std::numeric_limits<double>::infinity();
  return NearestFloat(product);
}

// The float32 nearest to x, as bits: denormals are made whatever the flush mode.
LNS_INLINE float FloatOf(double x) {
  if (std::fabs(x) >= 0x1p-126) return static_cast<float>(x);
  const uint32_t magnitude =
      static_cast<uint32_t>(std::nearbyint(std::fabs(x) * 0x1p149));
  return FromBits(magnitude | (std::signbit(x) ? 0x80000000u : 0u));
}

// ldexp(float32(total), exponent) * scale in float32; 0 where total is 0. Where that is
// Inf times 0, the product is taken first. The scale is a ScaleProduct.
LNS_INLINE float ValueOf(int64_t total, int exponent, double scale) {
  if (total == 0) return 0.0f;
  // 2^512 is beyond float32 as well, and no Inf.
  const double number = std::ldexp(static_cast<double>(static_cast<float>(total)),
                                   exponent < 512 ? exponent : 512);
  if (std::fabs(number) >= 0x1p128 && scale != 0.0) {
    return number < 0 ? -std::numeric_limits<float>::infinity()
                      : std::numeric_limits<float>::infinity();
  }
  return FloatOf(number * scale);
}

}  // namespace lns

#endif  // TF_LNS_CORE_PRODUCT_H_
