// Products of codes term by term: the fallback for any CPU and any datapath, and what
// the tests hold the vectorised kernels against.

#include "kernels/product_kernels.h"

#include <cstring>

namespace lns {

std::string Datapath::Error(int base_factor) const {
  int g = 0;
  while ((1 << g) < base_factor) ++g;
  const struct {
    const char* name;
    int64_t value, low, high;
  } ranges[] = {{"lut_bits", lut_bits, 0, g},
                {"accumulator_bits", accumulator_bits, 8, 32},
                {"headroom_bits", headroom_bits, 0, 32},
                {"fraction_bits", fraction_bits, 0, 16},
                {"vector_size", vector_size, 1, kMaxVectorSize}};
  for (const auto& range : ranges) {
    if (range.value < range.low || range.value > range.high) {
      return std::string(range.name) + " must be " + std::to_string(range.low) +
             " to " + std::to_string(range.high) + ", got " +
             std::to_string(range.value);
    }
  }
  return "";
}

ProductPlan::ProductPlan(const Format& a, const Format& b, const Datapath& datapath)
    : a(a), b(b), datapath(datapath) {
  const int g = a.log2_base_factor(), m = datapath.lut_bits;
  const int fraction = datapath.fraction_bits;
  const int top = a.max_exponent() + b.max_exponent();
  lsb = (top >> g) + 1 + datapath.headroom_bits - (datapath.accumulator_bits - 1);
  largest = (int64_t{1} << (datapath.accumulator_bits - 1)) - 1;
  bins = datapath.bins ? 1 << m : 1;
  for (int h = 0; h < 1 << m; ++h) {
    const double entry_value = std::exp2(static_cast<double>(h) / (1 << m));
    entry.push_back(std::llround(std::ldexp(entry_value, fraction)));
  }
  shift = -lsb - g - (datapath.bins ? 0 : fraction);
  for (int r = 0; r < a.base_factor; ++r) {
    const int rest = r & ((1 << (g - m)) - 1);
    n.push_back((datapath.bins ? 1 : entry[r >> (g - m)]) * (a.base_factor + rest));
  }
  for (int p = 0; p <= top; ++p) {
    const int r = p & (a.base_factor - 1);
    const int left = std::max((p >> g) + shift, 0);
    const int right = std::min(std::max(-(p >> g) - shift, 0), 62);
    term.push_back((n[r] << left) >> right);
    bin.push_back(static_cast<uint16_t>(datapath.bins ? r >> (g - m) : 0));
    lost.push_back((n[r] & ((int64_t{1} << right) - 1)) != 0);
    max_term = std::max(max_term, term.back());
  }
  planes = BytePlanes(*this);
  floats = FloatTerms(*this);
  scaled = ScaledTerms(*this);
}

namespace {

template <typename T>
int64_t FirstOutsideOf(const Format& format, const T* codes, int64_t n) {
  const int largest = format.max_code();
  for (int64_t begin = 0; begin < n; begin += 4096) {
    const int64_t end = std::min(n, begin + 4096);
    int outside = 0;
    for (int64_t i = begin; i < end; ++i) {
      outside |= codes[i] > largest || codes[i] < -largest;
    }
    for (int64_t i = begin; outside && i < end; ++i) {
      if (codes[i] > largest || codes[i] < -largest) return i;
    }
  }
  return -1;
}

bool CanAlways(const ProductPlan&, int64_t) { return true; }

int64_t PackedSize(const ProductPlan& plan, int64_t k, int64_t n) {
  return k * n * (plan.b.bits <= 8 ? 1 : 2);
}

// Column after column.
template <typename T>
bool PackOf(const ProductPlan& plan, const T* b, int64_t row_stride,
            int64_t column_stride, int64_t k, int64_t begin, int64_t end, T* packed) {
  const int largest = plan.b.max_code();
  bool good = true;
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t i = 0; i < k; ++i) {
      const T code = b[i * row_stride + j * column_stride];
      good &= code <= largest && code >= -largest;
      packed[j * k + i] = code;
    }
  }
  return good;
}

bool Pack(const ProductPlan& plan, const void* b, int64_t row_stride,
          int64_t column_stride, int64_t k, int64_t, int64_t begin, int64_t end,
          void* packed) {
  if (plan.b.bits <= 8) {
    return PackOf(plan, static_cast<const int8_t*>(b), row_stride, column_stride, k,
                  begin, end, static_cast<int8_t*>(packed));
  }
  return PackOf(plan, static_cast<const int16_t*>(b), row_stride, column_stride, k,
                begin, end, static_cast<int16_t*>(packed));
}

struct Counts {
  int64_t saturated = 0, truncated = 0;
};

// The accumulators of one output, counted where `counts` is given.
template <typename A, typename B>
void Dot(const ProductPlan& plan, const A* a, int64_t a_stride, const B* b, int64_t k,
         int64_t* sums, uint8_t* marks, int32_t* accumulators, Counts* counts) {
  std::fill(accumulators, accumulators + plan.bins, 0);
  std::fill(marks, marks + plan.bins, 0);
  const int largest_p = static_cast<int>(plan.term.size()) - 1;
  for (int64_t begin = 0; begin < k; begin += plan.datapath.vector_size) {
    const int64_t end = std::min(k, begin + plan.datapath.vector_size);
    std::fill(sums, sums + plan.bins, 0);
    for (int64_t i = begin; i < end; ++i) {
      const int x = a[i * a_stride], y = b[i];
      if (x == 0 || y == 0) continue;
      // At most largest_p, but for codes outside of their format.
      const int p = std::min(std::abs(x) + std::abs(y) - 2, largest_p);
      const int64_t term = plan.term[p];
      sums[plan.bin[p]] += (x ^ y) < 0 ? -term : term;
      if (plan.lost[p]) marks[plan.bin[p]] |= 1;
    }
    for (int h = 0; h < plan.bins; ++h) {
      const int64_t exact = accumulators[h] + sums[h];
      const int64_t clamped = std::max(-plan.largest, std::min(plan.largest, exact));
      if (clamped != exact) marks[h] |= 2;
      accumulators[h] = static_cast<int32_t>(clamped);
    }
  }
  if (counts == nullptr) return;
  for (int h = 0; h < plan.bins; ++h) {
    counts->truncated += marks[h] & 1;
    counts->saturated += marks[h] >> 1;
  }
}

template <typename A, typename B>
void RowsOf(const ProductPlan& plan, const ProductBlock& block, Counts* counts) {
  const A* a = static_cast<const A*>(block.a);
  const B* packed = static_cast<const B*>(block.packed);
  std::vector<int64_t> sums(plan.bins);
  std::vector<uint8_t> marks(plan.bins);
  const int64_t columns = block.end - block.begin;
  std::vector<int32_t> own(block.accumulators ? 0 : columns * plan.bins);
  for (int64_t i = 0; i < block.m; ++i) {
    int32_t* row = own.data();
    if (block.accumulators) {
      row = block.accumulators + (i * block.result_stride + block.begin) * plan.bins;
    }
    for (int64_t j = block.begin; j < block.end; ++j) {
      Dot(plan, a + i * block.row_stride, block.column_stride, packed + j * block.k,
          block.k, sums.data(), marks.data(), row + (j - block.begin) * plan.bins,
          counts);
    }
    if (block.product == nullptr) continue;
    FinishPlain(plan, row, columns, block.row_scale[i * block.row_scale_stride],
                block.column_scale + block.begin * block.column_scale_stride,
                block.column_scale_stride, block.add,
                block.product + i * block.result_stride + block.begin);
  }
}

void RowsAndCounts(const ProductPlan& plan, const ProductBlock& block, Counts* counts) {
  if (plan.a.bits <= 8) {
    plan.b.bits <= 8 ? RowsOf<int8_t, int8_t>(plan, block, counts)
                     : RowsOf<int8_t, int16_t>(plan, block, counts);
  } else {
    plan.b.bits <= 8 ? RowsOf<int16_t, int8_t>(plan, block, counts)
                     : RowsOf<int16_t, int16_t>(plan, block, counts);
  }
}

void Rows(const ProductPlan& plan, const ProductBlock& block) {
  RowsAndCounts(plan, block, nullptr);
}

}  // namespace

void FinishPlain(const ProductPlan& plan, const int32_t* accumulators, int64_t count,
                 float row_scale, const float* column_scale,
                 int64_t column_scale_stride, bool add, float* product) {
  for (int64_t j = 0; j < count; ++j) {
    const double scale = ScaleProduct(row_scale, column_scale[j * column_scale_stride]);
    const float value =
        ValueOf(plan.Total(accumulators + j * plan.bins), plan.value_exponent(), scale);
    product[j] = add ? product[j] + value : value;
  }
}

int64_t FirstOutside(const Format& format, const void* codes, int64_t n) {
  if (format.bits <= 8) {
    return FirstOutsideOf(format, static_cast<const int8_t*>(codes), n);
  }
  return FirstOutsideOf(format, static_cast<const int16_t*>(codes), n);
}

void RowsWithCounts(const ProductPlan& plan, const ProductBlock& block,
                    int64_t* saturated, int64_t* truncated) {
  Counts counts;
  RowsAndCounts(plan, block, &counts);
  *saturated = counts.saturated;
  *truncated = counts.truncated;
}

const ProductKernels kProductPlain = {"plain", CanAlways, PackedSize, Pack, Rows};

}  // namespace lns
