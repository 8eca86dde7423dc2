// The tables behind the vectorised products.

#include <algorithm>
#include <cmath>

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

namespace {

// The largest octave of a format.
int Octaves(const Format& format) {
  return format.max_exponent() >> format.log2_base_factor();
}

uint32_t FieldOf(int exponent) { return static_cast<uint32_t>(exponent) << 23; }

// Whether the product of two powers, each rounded to float32, rounds to each entry of
// the table: none lies as near to a half as the three roundings reach.
bool PowersReachTable(const ProductPlan& plan) {
  const int factor = plan.a.base_factor;
  for (int r = 0; r < factor; ++r) {
    const double value =
        std::exp2(static_cast<double>(r) / factor + plan.datapath.fraction_bits);
    const double to_half = std::fabs(value - std::floor(value) - 0.5);
    if (to_half <= 3.2 * 0x1p-24 * value) return false;
  }
  return true;
}

}  // namespace

bool FloatTerms::InFloats(const ProductPlan& plan) {
  const Format &fa = plan.a, &fb = plan.b;
  const int g = fa.log2_base_factor(), m = plan.datapath.lut_bits;
  const int a_octaves = Octaves(fa), b_octaves = Octaves(fb);
  mantissa.resize(fa.base_factor);
  if (!plan.datapath.bins && m == g && m > 0) {
    // Powers of b stay below 4, products below 2^32.
    b_field = 127 - b_octaves;
    a_field = 127 + b_octaves - plan.lsb;
    if (a_octaves > 100 || b_octaves > 100 || a_field < 1) return false;
    if (!PowersReachTable(plan)) return false;
    kind = Kind::kPowers;
    for (int r = 0; r < fa.base_factor; ++r) {
      const double power = std::exp2(static_cast<double>(r) / fa.base_factor);
      mantissa[r] = Bits(static_cast<float>(power)) & kMantissaMask;
    }
    return true;
  }
  const bool fits =
      m == 0 || plan.datapath.bins || plan.datapath.fraction_bits + g <= 22;
  if (m > 4 || !fits) return false;
  // Bits add up to those of 2^(q - lsb) (1 + r / factor). Alone, where the other code
  // is 0, they have to stay below 1/2.
  const int sum = 127 - plan.lsb;
  b_field = std::min(sum, 123 - b_octaves);
  a_field = sum - b_field;
  if (b_field < 0 || a_field < 0 || a_field + a_octaves > 123) return false;
  for (int r = 0; r < fa.base_factor; ++r) {
    mantissa[r] = static_cast<uint32_t>(r) << (23 - g);
  }
  kind = m == 0 ? Kind::kLine : Kind::kTable;
  table_bits = m;
  for (int h = 0; h < 1 << m; ++h) {
    entry[h] = static_cast<float>(
        std::ldexp(static_cast<double>(plan.entry[h]), -plan.datapath.fraction_bits));
  }
  return true;
}

FloatTerms::FloatTerms(const ProductPlan& plan) {
  if (plan.max_term >= int64_t{1} << 31 || InFloats(plan)) return;
  kind = Kind::kNone;
  if (plan.datapath.bins) return;
  kind = Kind::kMemory;
  beyond = static_cast<int>(plan.term.size()) + 2;
  term.resize(2 * beyond + 1);
  for (size_t p = 0; p < plan.term.size(); ++p) {
    term[p + 2] = static_cast<int32_t>(plan.term[p]);
  }
}

ScaledTerms::ScaledTerms(const ProductPlan& plan) {
  const int factor = plan.a.base_factor, g = plan.a.log2_base_factor();
  const int a_octaves = Octaves(plan.a), b_octaves = Octaves(plan.b);
  const int64_t largest_n = *std::max_element(plan.n.begin(), plan.n.end());
  if (factor > kMaxFactor || plan.bins > BytePlanes::kMaxBins) return;
  if (a_octaves > 126 || b_octaves > 126) return;
  if (largest_n > int64_t{1} << 23 || plan.max_term >= int64_t{1} << 31) return;
  possible = true;
  b_exponent = 127 - b_octaves;
  a.resize(2 * plan.a.max_code() + 1);
  for (int e = 0; e <= plan.a.max_exponent(); ++e) {
    const int field = (e >> g) + b_octaves + plan.shift + 127;
    const float power = field < 1 ? 0.0f : FromBits(FieldOf(field));
    a[plan.a.max_code() + 1 + e] = power;
    a[plan.a.max_code() - 1 - e] = -power;
  }
  for (int h = 0; h < plan.bins; ++h) {
    for (int ra = 0; ra < factor; ++ra) {
      for (int rb = 0; rb < factor; ++rb) {
        const int r = (ra + rb) & (factor - 1);
        const int bin = plan.datapath.bins ? r >> (g - plan.datapath.lut_bits) : 0;
        const double n = static_cast<double>(bin == h ? plan.n[r] : 0);
        number.push_back(static_cast<float>(ra + rb >= factor ? 2 * n : n));
      }
    }
  }
}

}  // namespace lns
