// The tables behind the vectorised products.

#include "core/product.h"

namespace lns {

BytePlanes::BytePlanes(const ProductPlan& plan) {
  if (plan.a.bits > 8 || plan.b.bits > 8 || plan.bins > kMaxBins) return;
  if (plan.max_term >= int64_t{1} << 32) return;
  const int top = static_cast<int>(plan.term.size()) - 1;
  int first = 0;
  while (first < top && plan.term[first] == 0) ++first;
  top_origin = std::max(top - 127, -1);
  low_origin = std::min(first - 1, top_origin);
  b_offset = std::max(0, plan.a.max_code() - 2 - low_origin);
  a_minuend = b_offset + low_origin + 2;

  // An index of the top tables is the largest of `between` and that of the low ones.
  const int between = top_origin - low_origin;
  bins.resize(plan.bins);
  for (int h = 0; h < plan.bins; ++h) {
    Bin& bin = bins[h];
    Bin lows;
    for (int byte = 0; byte < 4; ++byte) {
      const auto at = [&](int p) {
        return plan.bin[p] == h ? static_cast<uint8_t>(plan.term[p] >> (8 * byte)) : 0;
      };
      int begin = 0, end = top + 1;  // where bytes are not 0
      while (begin < end && at(begin) == 0) ++begin;
      while (end > begin && at(end - 1) == 0) --end;
      // The first table is that of the lowest byte, even where that is always 0.
      if (begin == end && byte > 0) continue;
      if (byte == 0 && between > 0 && begin > top_origin) lows.low = 1;
      if (byte == 0 && between == 0 && begin == end) bin.top = 1;
      const bool in_low = begin <= top_origin && end - 1 - low_origin <= 127;
      const int cut = in_low ? end : std::max(begin, top_origin + 1);
      if (begin < cut) {
        lows.shift[lows.low] = 8 * byte;
        for (int p = begin; p < cut; ++p) lows.table[lows.low][p - low_origin] = at(p);
        ++lows.low;
      }
      if (cut < end) {
        bin.shift[bin.top] = 8 * byte;
        for (int p = cut; p < end; ++p) {
          bin.table[bin.top][(p - low_origin) & 127] = at(p);
        }
        ++bin.top;
      }
    }
    bin.low = lows.low;
    for (int i = 0; i < lows.low; ++i) {
      bin.shift[bin.top + i] = lows.shift[i];
      std::copy(lows.table[i], lows.table[i] + 128, bin.table[bin.top + i]);
    }
  }
}

}  // namespace lns
