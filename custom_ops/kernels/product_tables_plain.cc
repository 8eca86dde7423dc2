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

// Numbers of all codes: number(e) with the sign of the code, 0 for code 0.
template <typename Number>
std::vector<uint32_t> OfCodes(const Format& format, const Number& number) {
  const int top = format.max_code();
  std::vector<uint32_t> all(2 * top + 1);
  for (int e = 0; e < top; ++e) {
    const uint32_t bits = number(e);
    all[top + 1 + e] = bits;
    all[top - 1 - e] = bits | 0x80000000u;
  }
  return all;
}

// float32(2^(e/factor) 2^exponent); 0 where that is below 2^-126.
std::vector<uint32_t> Powers(const Format& format, int exponent) {
  std::vector<float> within;
  for (int r = 0; r < format.base_factor; ++r) {
    within.push_back(
        static_cast<float>(std::exp2(static_cast<double>(r) / format.base_factor)));
  }
  return OfCodes(format, [&](int e) {
    const int field = (e >> format.log2_base_factor()) + exponent + 127;
    if (field < 1) return 0u;
    return Bits(within[e & (format.base_factor - 1)]) + FieldOf(field - 127);
  });
}

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

FloatTerms::FloatTerms(const ProductPlan& plan) {
  const Format &fa = plan.a, &fb = plan.b;
  const int g = fa.log2_base_factor(), m = plan.datapath.lut_bits;
  if (plan.max_term >= int64_t{1} << 31) return;
  const int a_octaves = Octaves(fa), b_octaves = Octaves(fb);
  if (!plan.datapath.bins && m == g && m > 0) {
    // Products stay below 2^32, and powers of b below 4.
    if (a_octaves > 100 || b_octaves > 100 || !PowersReachTable(plan)) return;
    kind = Kind::kPowers;
    b = Powers(fb, -b_octaves);
    a = Powers(fa, b_octaves - plan.lsb);
    return;
  }
  if (m > 4 || (!plan.datapath.bins && plan.datapath.fraction_bits + g > 22)) return;
  // Bits add up to those of 2^(q - lsb) (1 + r / factor). Alone, where the other code
  // is 0, they have to stay below 1/2.
  const int sum = 127 - plan.lsb;
  const int b_field = std::min(sum, 123 - b_octaves), a_field = sum - b_field;
  if (b_field < 0 || a_field < 0 || a_field + a_octaves > 123) return;
  const auto bits = [&](int field) {
    return
        [=](int e) { return FieldOf(field) + (static_cast<uint32_t>(e) << (23 - g)); };
  };
  a = OfCodes(fa, bits(a_field));
  b = OfCodes(fb, bits(b_field));
  kind = m == 0 ? Kind::kLine : Kind::kTable;
  table_bits = m;
  for (int h = 0; h < 1 << m; ++h) {
    entry[h] = static_cast<float>(
        std::ldexp(static_cast<double>(plan.entry[h]), -plan.datapath.fraction_bits));
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
