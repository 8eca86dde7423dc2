// Every way to a product of codes against the plain one, bit for bit.

#include <xmmintrin.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/random.h"
#include "kernels/dispatch.h"
#include "tests/check.h"

namespace lns {
namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : key_(seed) {}
  uint32_t operator()() { return RandomBits(key_, i_++); }
  int Below(uint32_t n) { return static_cast<int>((*this)() % n); }
  template <typename T, size_t kCount>
  T Of(const T (&choices)[kCount]) {
    return choices[Below(kCount)];
  }

 private:
  RandomKey key_;
  uint64_t i_ = 0;
};

enum class Codes { kAny, kLarge, kSmall, kSparse, kOneSign };

int Code(const Format& format, Codes kind, Random* random) {
  const int top = format.max_code();
  int code = random->Below(2 * top + 1) - top;
  if (kind == Codes::kSparse && random->Below(4)) code = 0;
  if (kind == Codes::kLarge || kind == Codes::kOneSign) {
    code = top - random->Below(top / 8 + 1);
    if (kind == Codes::kLarge && random->Below(2)) code = -code;
  }
  if (kind == Codes::kSmall) code = random->Below(2 * (top / 4) + 1) - top / 4;
  return code;
}

// A matrix of codes somewhere in memory, exactly as large as it has to be.
class Matrix {
 public:
  Matrix(const Format& format, Codes kind, int64_t rows, int64_t columns,
         Random* random)
      : size_(format.bits <= 8 ? 1 : 2) {
    const int layout = random->Below(3);
    const int64_t gap = layout == 2 ? 1 + random->Below(3) : 1;
    row_ = layout == 1 ? 1 : columns * gap;
    column_ = layout == 1 ? rows : gap;
    const int64_t last =
        rows == 0 || columns == 0 ? 0 : (rows - 1) * row_ + (columns - 1) * column_ + 1;
    data_.resize(last * size_);
    for (int64_t i = 0; i < last; ++i) {
      const int16_t code = static_cast<int16_t>(Code(format, kind, random));
      std::memcpy(data_.data() + i * size_, &code, size_);
    }
  }
  const void* data() const { return data_.data(); }
  int64_t row() const { return row_; }
  int64_t column() const { return column_; }
  void Put(int64_t at, int16_t code) {
    std::memcpy(data_.data() + at * size_, &code, size_);
  }

 private:
  int64_t size_, row_, column_;
  std::vector<char> data_;
};

class Packed {
 public:
  explicit Packed(int64_t size)
      : data_(static_cast<char*>(std::aligned_alloc(64, (size + 63) / 64 * 64 + 64))) {}
  ~Packed() { std::free(data_); }
  void* data() { return data_; }

 private:
  char* data_;
};

struct Case {
  ProductPlan plan;
  int64_t m, k, n;
  Codes a_kind, b_kind;
};

std::string Describe(const Case& c, const char* name) {
  const Datapath& d = c.plan.datapath;
  char text[256];
  std::snprintf(
      text, sizeof(text),
      "%s: %ldx%ldx%ld bits %d %d factor %d lut %d acc %d headroom %d fraction %d "
      "vector %ld%s codes %d %d",
      name, static_cast<long>(c.m), static_cast<long>(c.k), static_cast<long>(c.n),
      c.plan.a.bits, c.plan.b.bits, c.plan.a.base_factor, d.lut_bits,
      d.accumulator_bits, d.headroom_bits, d.fraction_bits,
      static_cast<long>(d.vector_size), d.bins ? " bins" : "",
      static_cast<int>(c.a_kind), static_cast<int>(c.b_kind));
  return text;
}

struct Result {
  std::vector<int32_t> accumulators;
  std::vector<float> product;
  bool good;
};

// Columns in two parts, so that borders are seen; rows of results lie apart.
Result Compute(const ProductKernels& kernels, const Case& c, const Matrix& a,
               const Matrix& b, const std::vector<float>& a_scale,
               const std::vector<float>& b_scale, int64_t gap, bool add) {
  const ProductPlan& plan = c.plan;
  Packed packed(kernels.packed_size(plan, c.k, c.n));
  const int64_t middle = (c.n / 2 + kProductPanel - 1) / kProductPanel * kProductPanel;
  const int64_t cut = middle < c.n ? middle : c.n;
  Result result;
  ProductBlock block;
  block.result_stride = c.n + gap;
  const int64_t size = c.m == 0 ? 0 : (c.m - 1) * block.result_stride + c.n;
  result.accumulators.assign(size * plan.bins, -7);
  result.product.assign(size, 0.75f);
  result.good = true;
  for (int part = 0; part < 2; ++part) {
    block.begin = part ? cut : 0;
    block.end = part ? c.n : cut;
    if (part && cut == c.n) break;
    result.good &= kernels.pack(plan, b.data(), b.row(), b.column(), c.k, c.n,
                                block.begin, block.end, packed.data());
    block.a = a.data();
    block.row_stride = a.row();
    block.column_stride = a.column();
    block.m = c.m;
    block.k = c.k;
    block.n = c.n;
    block.packed = packed.data();
    block.accumulators = result.accumulators.data();
    block.product = result.product.data();
    block.add = add;
    block.row_scale = a_scale.data();
    block.row_scale_stride = a_scale.size() > 1;
    block.column_scale = b_scale.data();
    block.column_scale_stride = b_scale.size() > 1;
    kernels.rows(plan, block);
  }
  return result;
}

std::vector<float> Scales(int64_t n, Random* random) {
  std::vector<float> scales(random->Below(2) ? 1 : n > 0 ? n : 1);
  const uint32_t starts[] = {0x3F800000u, 0x3F800000u, 0x00800000u,
                             0x20000000u, 0x5F000000u, 0x7F000000u};
  const uint32_t start = random->Of(starts);
  for (float& scale : scales) scale = FromBits(start + random->Below(0x00600000));
  return scales;
}

void Compare(const Case& c, Random* random) {
  Matrix a(c.plan.a, c.a_kind, c.m, c.k, random);
  Matrix b(c.plan.b, c.b_kind, c.k, c.n, random);
  const std::vector<float> a_scale = Scales(c.m, random), b_scale = Scales(c.n, random);
  const int64_t gap = random->Below(3);
  const bool add = random->Below(3) == 0;
  const Result plain = Compute(kProductPlain, c, a, b, a_scale, b_scale, gap, add);
  for (const ProductKernels* kernels : AllProducts()) {
    if (!kernels->can(c.plan, c.k)) continue;
    const Result fast = Compute(*kernels, c, a, b, a_scale, b_scale, gap, add);
    const std::string what = Describe(c, kernels->name);
    Check(plain.good && fast.good, what + " refused codes");
    Check(plain.accumulators == fast.accumulators, what + " accumulators");
    const size_t bytes = plain.product.size() * sizeof(float);
    Check(bytes == 0 ||
              std::memcmp(plain.product.data(), fast.product.data(), bytes) == 0,
          what + " product");
  }
}

// Any datapath; a third of them are near the default.
Case RandomCase(Random* random) {
  Case c;
  Format a, b;
  const int bits[] = {8, 8, 8, 8, 8, 7, 5, 2, 4, 16, 16, 10, 12, 9};
  const int factors[] = {8, 8, 8, 1, 2, 4, 16, 64, 2048, 4096};
  a.bits = random->Of(bits);
  b.bits = random->Below(3) ? a.bits : random->Of(bits);
  a.base_factor = b.base_factor = random->Of(factors);
  const int g = a.log2_base_factor();
  Datapath d;
  d.lut_bits = random->Below(2) ? g : random->Below(g + 1);
  if (random->Below(3)) {
    const int widths[] = {24, 24, 24, 8, 10, 12, 14, 16, 18, 20, 22, 28, 30, 32, 32};
    d.accumulator_bits = random->Of(widths);
    const int headrooms[] = {4, 4, 0, 1, 2, 3, 5, 8, 20, 32};
    d.headroom_bits = random->Of(headrooms);
    const int fractions[] = {8, 8, 0, 1, 4, 10, 12, 16};
    d.fraction_bits = random->Of(fractions);
    const int64_t vectors[] = {
        16, 16, 16, 1, 2, 4, 5, 8, 12, 30, 32, 64, 67, 1000, kMaxVectorSize};
    d.vector_size = random->Of(vectors);
  }
  if (random->Below(4) == 0) {
    d.bins = true;
    if (d.lut_bits > 4) d.lut_bits = random->Below(6);
  }
  c.plan = ProductPlan(a, b, d);
  const int ms[] = {1, 1, 2, 3, 4, 5, 7, 8, 16, 17, 33};
  const int ks[] = {0, 1, 3, 4, 15, 16, 17, 31, 32, 48, 63, 64, 65, 100, 129, 200};
  const int ns[] = {1, 3, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 150};
  c.m = random->Of(ms);
  c.k = random->Of(ks);
  c.n = random->Of(ns);
  c.a_kind = static_cast<Codes>(random->Below(5));
  c.b_kind = static_cast<Codes>(random->Below(5));
  return c;
}

// A product of all pairs of codes, one term each.
void AllPairs(const ProductPlan& plan, Random* random) {
  const int a_top = plan.a.max_code(), b_top = plan.b.max_code();
  Case c{plan, 2 * a_top + 1, 1, 2 * b_top + 1, Codes::kAny, Codes::kAny};
  Matrix a(plan.a, Codes::kAny, c.m, 1, random), b(plan.b, Codes::kAny, 1, c.n, random);
  for (int i = 0; i < c.m; ++i) a.Put(i * a.row(), static_cast<int16_t>(i - a_top));
  for (int j = 0; j < c.n; ++j) b.Put(j * b.column(), static_cast<int16_t>(j - b_top));
  const std::vector<float> one = {1.0f};
  const Result plain = Compute(kProductPlain, c, a, b, one, one, 0, false);
  for (const ProductKernels* kernels : AllProducts()) {
    if (!kernels->can(plan, 1)) continue;
    const Result fast = Compute(*kernels, c, a, b, one, one, 0, false);
    Check(plain.accumulators == fast.accumulators,
          Describe(c, kernels->name) + " all pairs");
  }
}

void RefusesCodes(const Format& format, Random* random) {
  const ProductPlan plan(format, format, Datapath());
  for (const ProductKernels* kernels : AllProducts()) {
    if (!kernels->can(plan, 37)) continue;
    for (int i = 0; i < 20; ++i) {
      Matrix b(format, Codes::kAny, 37, 70, random);
      const int64_t row = random->Below(37), column = random->Below(70);
      const int bad = format.max_code() + 1;
      b.Put(row * b.row() + column * b.column(),
            static_cast<int16_t>(i % 2              ? -bad
                                 : format.bits == 8 ? -bad
                                                    : bad));
      Packed packed(kernels->packed_size(plan, 37, 70));
      const bool first = kernels->pack(plan, b.data(), b.row(), b.column(), 37, 70, 0,
                                       64, packed.data());
      const bool second = kernels->pack(plan, b.data(), b.row(), b.column(), 37, 70, 64,
                                        70, packed.data());
      Check(first == (column >= 64) && second == (column < 64),
            std::string(kernels->name) + " lets a bad code pass");
    }
  }
}

void Run() {
  for (uint32_t flush : {0u, 0x8040u}) {  // FTZ and DAZ
    _mm_setcsr((_mm_getcsr() & ~0x8040u) | flush);
    Random random(flush + 1);
    for (int i = 0; i < 3000; ++i) Compare(RandomCase(&random), &random);
    for (int lut = 0; lut <= 3; ++lut) {
      for (int bits : {8, 12, 16, 20, 24, 28, 32}) {
        for (bool bins : {false, true}) {
          Datapath d;
          d.lut_bits = lut;
          d.accumulator_bits = bits;
          d.bins = bins;
          const ProductPlan plan({8, 8}, {8, 8}, d);
          AllPairs(plan, &random);
          for (Codes kind : {Codes::kAny, Codes::kOneSign}) {
            Compare({plan, 9, 300, 70, kind, kind}, &random);
          }
        }
      }
    }
    for (Format format : {Format{8, 8}, Format{5, 2}, Format{2, 1}, Format{10, 32}}) {
      RefusesCodes(format, &random);
    }
    _mm_setcsr(_mm_getcsr() & ~0x8040u);
  }
}

}  // namespace
}  // namespace lns

int main() {
  for (const lns::ProductKernels* kernels : lns::AllProducts()) {
    std::printf("%s\n", kernels->name);
  }
  lns::Run();
  return lns::Report();
}
