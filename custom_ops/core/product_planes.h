// The terms of a datapath as tables of bytes, for kernels that look up 64 bytes at
// once.
//
// A term is split into its bytes. Each byte is a table over the sum of exponents p, cut
// into windows of at most 127 entries: one that ends with the largest p, and, where
// terms reach further down than that, one that starts with the smallest p whose term is
// not 0. All p outside of the window share an entry, which is 0.

#ifndef TF_LNS_CORE_PRODUCT_PLANES_H_
#define TF_LNS_CORE_PRODUCT_PLANES_H_

#include <cstdint>
#include <vector>

namespace lns {

struct ProductPlan;

struct BytePlanes {
  static constexpr int kMaxTop = 4, kMaxLow = 4, kMaxBins = 16;

  // The tables of the accumulator of one bin: `top` tables, then `low` ones. Table i is
  // worth 2^shift[i]. The first low one has a shift of 0; without any, the first top
  // one.
  struct Bin {
    int top = 0, low = 0;
    int shift[kMaxTop + kMaxLow] = {};
    uint8_t table[kMaxTop + kMaxLow][128] = {};
  };

  // With x = max(0, p - low_origin), and d = top_origin - low_origin, tables are looked
  // up at the last 7 bits of max(x, d) or min(x, 128). Where d = 0 there are no low
  // tables.
  int low_origin = 0, top_origin = 0;
  std::vector<Bin> bins;  // empty where codes have more than 8 bits, or bins are many

  BytePlanes() = default;
  explicit BytePlanes(const ProductPlan& plan);

  // A pair of bytes, one of each operand, that give p - low_origin as their saturated
  // difference, at most 0 where a code is 0.
  int b_offset = 0;   // |code| + b_offset, 0 for code 0
  int a_minuend = 0;  // a_minuend - |code|, 255 for code 0
};

}  // namespace lns

#endif  // TF_LNS_CORE_PRODUCT_PLANES_H_
