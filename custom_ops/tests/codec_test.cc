// The codec kernels: tables against their definition, every instruction set against the
// plain kernels, bit for bit.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "kernels/codec_kernels.h"
#include "kernels/dispatch.h"
#include "tests/check.h"

namespace lns {
namespace {

struct Kernels {
  const char* name;
  const CodecKernels* table;
};

std::vector<Kernels> VectorKernels() {
  std::vector<Kernels> sets;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back({"avx2", &kCodecAvx2});
  }
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    sets.push_back({"avx512", &kCodecAvx512});
  }
#endif
  for (const char* name : {"avx2", "avx512"}) {
    const bool have = std::any_of(sets.begin(), sets.end(), [&](const Kernels& k) {
      return std::strcmp(k.name, name) == 0;
    });
    if (!have) std::printf("skipped %s: this CPU lacks it\n", name);
  }
  return sets;
}

std::string Describe(const Format& format) {
  return "lns" + std::to_string(format.bits) + ":" + std::to_string(format.base_factor);
}

std::vector<Format> AllFormats() {
  std::vector<Format> formats;
  for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
    for (int base_factor = 1; base_factor <= kMaxBaseFactor; base_factor *= 2) {
      formats.push_back({bits, base_factor});
    }
  }
  return formats;
}

// Denormals flushed and taken as zero, as TensorFlow's own threads do, while it lives.
class FlushDenormals {
 public:
  explicit FlushDenormals(bool on) {
#if defined(__x86_64__)
    saved_ = _mm_getcsr();
    if (on) _mm_setcsr(saved_ | 0x8040);
#endif
  }
  ~FlushDenormals() {
#if defined(__x86_64__)
    _mm_setcsr(saved_);
#endif
  }

 private:
  unsigned saved_ = 0;
};

// --- Tables -----------------------------------------------------------------------

void TestTables() {
  for (int base_factor = 1; base_factor <= kMaxBaseFactor; base_factor *= 2) {
    const Tables& tables = Tables::Of(base_factor);
    const std::string name = "tables of base factor " + std::to_string(base_factor);
    bool good = tables.decode.size() == static_cast<size_t>(base_factor) &&
                tables.threshold.size() == static_cast<size_t>(base_factor);
    for (int r = 0; good && r < base_factor; ++r) {
      const long double power = std::exp2(static_cast<long double>(r) / base_factor);
      const long double middle = std::exp2((2.0L * r + 1.0L) / (2.0L * base_factor));
      good &= tables.decode[r] == static_cast<float>(power);
      good &= tables.threshold[r] >= middle &&
              std::nextafter(tables.threshold[r], 0.0f) < middle;
    }
    Check(good, name);
    Check(&Tables::Of(base_factor) == &tables, name + " are made once");
    if (base_factor > kMaxBucketBaseFactor) continue;
    // Buckets against thresholds at every mantissa.
    const int shift = base_factor == kMaxBucketBaseFactor ? 18 : 19;
    bool same = true;
    int within = 0;
    for (uint32_t mantissa = 0; mantissa <= kMantissaMask; ++mantissa) {
      const uint32_t bits = mantissa | 0x3F800000u;
      while (within < base_factor && tables.threshold[within] <= FromBits(bits)) {
        ++within;
      }
      const uint32_t carried = bits + tables.bucket_addend[mantissa >> shift];
      const int exponent = (static_cast<int>(carried >> 23) - 127) * base_factor +
                           tables.bucket_exponent[(carried >> shift) & 31];
      same &= exponent == within;
    }
    Check(same, "buckets of base factor " + std::to_string(base_factor));
  }
}

// --- Inputs -----------------------------------------------------------------------

std::mt19937 generator(12345);

float RandomFloat() { return FromBits(static_cast<uint32_t>(generator())); }

const std::vector<float>& Scales() {
  static const std::vector<float> scales = {
      1.0f,      0x1p-20f,  0x1p-126f, 0x1p127f,       0x1p126f,       0x1.8p-3f,
      1.234567f, 3.14e-37f, 1.1e30f,   0x1.fffffep+0f, 0x1.000002p-7f, 3.3e38f};
  return scales;
}

// Floats around every decision boundary of a scale (a sample of them for large base
// factors), then special and random ones.
std::vector<float> Inputs(const Format& format, float scale) {
  const Tables& tables = Tables::Of(format.base_factor);
  std::vector<float> x;
  const int step = std::max(1, format.base_factor / 16);
  for (int first = 0; first < format.base_factor; first += step) {
    const int r = first + static_cast<int>(generator() % step);
    const int octaves = static_cast<int>(format.octaves());
    for (int octave : {0, octaves, static_cast<int>(generator() % (octaves + 1))}) {
      const double boundary =
          std::ldexp(static_cast<double>(tables.threshold[r]) * scale, octave);
      if (boundary > 3.0e38) continue;
      const uint32_t bits = Bits(static_cast<float>(boundary));
      for (int ulps = -2; ulps <= 2; ++ulps) {
        const float value = FromBits(bits + ulps);
        x.push_back(generator() & 1 ? value : -value);
      }
    }
  }
  const float special[] = {0.0f,
                           1e-45f,
                           0x1p-127f,
                           0x1.fffffcp-127f,
                           0x1p-126f,
                           0x1.000002p-126f,
                           scale,
                           scale / 2,
                           scale / 4,
                           FromBits(Bits(scale) - 1),
                           FromBits(Bits(scale) + 1),
                           FromBits(Bits(scale / 2) - 1),
                           FromBits(Bits(scale / 2) + 1),
                           0x1.fffffep127f,
                           0x1p127f,
                           1.0f,
                           std::numeric_limits<float>::infinity()};
  for (float value : special) {
    x.push_back(value);
    x.push_back(-value);
  }
  for (uint32_t nan : {0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu, 0xFFC12345u}) {
    x.push_back(FromBits(nan));
  }
  for (int i = 0; i < 64; ++i) x.push_back(RandomFloat());
  std::shuffle(x.begin(), x.end(), generator);
  return x;
}

int64_t CodeSize(const Format& format) { return format.bits <= 8 ? 1 : 2; }

// Room for some bytes with guards around them, at the start of a cache line or, to be
// unkind, one float behind it.
class Buffer {
 public:
  explicit Buffer(int64_t bytes, bool aligned = false)
      : memory_(bytes + 256, 0x5A), bytes_(bytes + 128) {
    start_ = (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64;
    shift_ = aligned ? 64 : 68;
  }
  void* data() { return memory_.data() + start_ + shift_; }
  bool Same(const Buffer& other) const {
    return std::equal(memory_.begin() + start_, memory_.begin() + start_ + bytes_,
                      other.memory_.begin() + other.start_);
  }

 private:
  std::vector<unsigned char> memory_;
  int64_t bytes_;
  int64_t start_;
  int64_t shift_;
};

// --- Every function on the same input ----------------------------------------------

struct Case {
  CodecPlan plan;
  std::vector<float> x;
  std::vector<float> scales;  // one, or one per element
  int64_t offset = 0;         // of the flat index

  int stride() const { return scales.size() == 1 ? 0 : 1; }
  int64_t n() const { return static_cast<int64_t>(x.size()); }
};

bool SameFloats(const CodecKernels& kernels, const Case& c) {
  Buffer expected(c.n() * 4, c.plan.around_cache), got(c.n() * 4, c.plan.around_cache);
  kCodecPlain.quantize(c.plan, c.x.data(), c.scales.data(), c.stride(), c.offset,
                       static_cast<float*>(expected.data()), c.n());
  kernels.quantize(c.plan, c.x.data(), c.scales.data(), c.stride(), c.offset,
                   static_cast<float*>(got.data()), c.n());
  return expected.Same(got);
}

bool SameCodes(const CodecKernels& kernels, const Case& c) {
  const int64_t bytes = c.n() * CodeSize(c.plan.format);
  Buffer expected(bytes), got(bytes);
  const int64_t first =
      kCodecPlain.encode(c.plan, c.x.data(), c.scales.data(), c.stride(), c.offset,
                         expected.data(), c.n());
  return kernels.encode(c.plan, c.x.data(), c.scales.data(), c.stride(), c.offset,
                        got.data(), c.n()) == first &&
         expected.Same(got);
}

void TestFloats(const Kernels& set) {
  for (const Format& format : AllFormats()) {
    bool floats = true, codes = true, stochastic = true;
    for (float scale : Scales()) {
      Case c;
      c.plan = CodecPlan(format);
      c.plan.key = RandomKey(generator());
      c.offset = generator();
      const std::vector<float> x = Inputs(format, scale);
      for (int variant = 0; variant < 6; ++variant) {
        c.x = x;
        c.scales = {scale};
        c.plan.underflow = variant & 1 ? Underflow::kFlush : Underflow::kClamp;
        c.plan.rounding = variant < 4 ? Rounding::kNearest : Rounding::kStochastic;
        c.plan.pass_infinity = (variant & 2) != 0;
        c.plan.around_cache = variant == 3;
        FlushDenormals flush((variant & 1) != 0);
        if (variant == 2 || variant == 3) {  // few elements
          c.x.resize(100);
        } else {  // many
          while (c.x.size() < 600) c.x.insert(c.x.end(), x.begin(), x.end());
        }
        bool* result = variant < 4 ? &floats : &stochastic;
        *result &= SameFloats(*set.table, c);
        codes &= SameCodes(*set.table, c);
        // The same under a scale per element.
        for (size_t i = 1; i < c.x.size(); ++i) {
          c.scales.push_back(i % 3 ? scale : Scales()[generator() % Scales().size()]);
        }
        *result &= SameFloats(*set.table, c);
        codes &= SameCodes(*set.table, c);
      }
    }
    const std::string name = std::string(set.name) + " " + Describe(format);
    Check(floats, name + " quantize");
    Check(stochastic, name + " quantize, stochastic");
    Check(codes, name + " encode");
  }
}

// All 2^23 mantissas: the proof that no float between the boundaries goes astray.
void TestEveryMantissa(const Kernels& set) {
  constexpr int64_t kAll = 1 << 23;
  std::vector<float> x(kAll), y(kAll);
  std::vector<int16_t> codes(kAll);
  for (int64_t i = 0; i < kAll; ++i) {
    x[i] = FromBits(0x3F800000u | static_cast<uint32_t>(i));
  }
  const float one = 1.0f;
  for (int base_factor = 1; base_factor <= kMaxBaseFactor; base_factor *= 2) {
    const CodecPlan plan(Format{16, base_factor});
    set.table->encode(plan, x.data(), &one, 0, 0, codes.data(), kAll);
    bool same = true;
    int within = 0;
    for (int64_t i = 0; i < kAll; ++i) {
      while (within < base_factor && plan.tables->threshold[within] <= x[i]) ++within;
      same &= codes[i] == within + 1;
    }
    Check(same, std::string(set.name) + " encode of every mantissa, base factor " +
                    std::to_string(base_factor));
  }
  for (int base_factor = 1; base_factor <= kMaxBucketBaseFactor; base_factor *= 2) {
    for (float scale : {1.234567f, 1.9f, 0x1.000002p+0f}) {
      const CodecPlan plan(Format{8, base_factor});
      const float small = scale / 8;
      set.table->quantize(plan, x.data(), &small, 0, 0, y.data(), kAll);
      bool same = true;
      int e = 0;
      for (int64_t i = 0; i < kAll; ++i) {
        const float ratio = x[i] / small;
        // The exponent never falls; raise it while the next boundary is reached.
        while (std::ldexp(plan.tables->threshold[e & (base_factor - 1)],
                          e / base_factor) <= ratio) {
          ++e;
        }
        same &= y[i] == std::ldexp(small * plan.tables->decode[e & (base_factor - 1)],
                                   e / base_factor);
      }
      Check(same, std::string(set.name) + " quantize of every mantissa, base factor " +
                      std::to_string(base_factor));
    }
  }
}

// All codes, those outside the format included.
std::vector<int32_t> AllCodes(const Format& format) {
  const int limit = format.bits <= 8 ? 128 : 32768;
  std::vector<int32_t> codes;
  for (int code = -limit; code < limit; ++code) codes.push_back(code);
  return codes;
}

std::vector<char> Packed(const Format& format, const std::vector<int32_t>& codes) {
  std::vector<char> packed(codes.size() * CodeSize(format) + 1);
  for (size_t i = 0; i < codes.size(); ++i) {
    if (format.bits <= 8) {
      packed[i] = static_cast<char>(codes[i]);
    } else {
      const int16_t code = static_cast<int16_t>(codes[i]);
      std::memcpy(&packed[2 * i], &code, 2);
    }
  }
  return packed;
}

void TestCodes(const Kernels& set) {
  for (const Format& format : AllFormats()) {
    const std::vector<int32_t> all = AllCodes(format);
    const std::vector<char> codes = Packed(format, all);
    const int64_t n = static_cast<int64_t>(all.size());
    CodecPlan plan(format);
    bool decode = true;
    for (float scale : {1.0f, 1.234567f, 0x1p-126f, 3.3e38f}) {
      for (int stride : {0, 1}) {
        std::vector<float> scales(stride ? n : 1, scale);
        for (size_t i = 1; i < scales.size(); i += 2) scales[i] = scale / 2 + 1.0f;
        FlushDenormals flush(stride == 1);
        plan.around_cache = scale == 1.0f;
        Buffer expected(n * 4, plan.around_cache), got(n * 4, plan.around_cache);
        const int64_t first =
            kCodecPlain.decode(plan, codes.data(), scales.data(), stride,
                               static_cast<float*>(expected.data()), n);
        decode &= first == set.table->decode(plan, codes.data(), scales.data(), stride,
                                             static_cast<float*>(got.data()), n);
        decode &= expected.Same(got);
      }
    }
    // No bad code: none is reported.
    const int64_t good = 2 * format.max_code() + 1;
    const char* first_good =
        codes.data() + (n / 2 - format.max_code()) * CodeSize(format);
    const float one = 1.0f;
    Buffer values(good * 4);
    decode &= set.table->decode(plan, first_good, &one, 0,
                                static_cast<float*>(values.data()), good) == -1;
    const std::string name = std::string(set.name) + " " + Describe(format);
    Check(decode, name + " decode");

    bool requantize = true, read = true;
    std::vector<Format> others = {{8, 8},     {5, 1},     {5, 2},   {16, 2048},
                                  {16, 4096}, {2, 1},     {11, 64}, {16, 1},
                                  format,     {12, 4096}, {9, 16},  {14, 32}};
    for (const Format& to : others) {
      Buffer expected(n * CodeSize(to)), got(n * CodeSize(to));
      const int64_t first =
          kCodecPlain.requantize(format, to, codes.data(), expected.data(), n);
      requantize &=
          first == set.table->requantize(format, to, codes.data(), got.data(), n);
      requantize &= expected.Same(got);
      CodecPlan reading(to);
      for (float scale : {0x1p-12f, 1.7e38f}) {
        reading.around_cache = scale > 1.0f;
        Buffer wanted(n * 4, reading.around_cache), seen(n * 4, reading.around_cache);
        kCodecPlain.read(format, reading, codes.data(), scale,
                         static_cast<float*>(wanted.data()), n);
        set.table->read(format, reading, codes.data(), scale,
                        static_cast<float*>(seen.data()), n);
        read &= wanted.Same(seen);
      }
    }
    Check(requantize, name + " requantize");
    Check(read, name + " read");
  }
}

// Sizes about the vector widths, at addresses aligned to an element only.
void TestSizes(const Kernels& set) {
  for (int n :
       {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 511, 512, 1000}) {
    bool same = true;
    for (const Format& format : {Format{8, 8}, Format{5, 1}, Format{8, 16},
                                 Format{16, 2048}, Format{10, 32}}) {
      for (Rounding rounding : {Rounding::kNearest, Rounding::kStochastic}) {
        Case c;
        c.plan = CodecPlan(format);
        c.plan.rounding = rounding;
        for (int i = 0; i < n; ++i) c.x.push_back(RandomFloat());
        c.scales = {0.3f};
        c.plan.around_cache = rounding == Rounding::kNearest;
        same &= SameFloats(*set.table, c) && SameCodes(*set.table, c);
        c.scales.resize(std::max(2, n), 0.7f);
        same &= SameFloats(*set.table, c) && SameCodes(*set.table, c);

        const float scale = 0.3f;
        Buffer codes(n * 2), expected(n * 4), got(n * 4), to_expected(n), to_got(n);
        kCodecPlain.encode(c.plan, c.x.data(), &scale, 0, 0, codes.data(), n);
        kCodecPlain.decode(c.plan, codes.data(), c.scales.data(), 1,
                           static_cast<float*>(expected.data()), n);
        set.table->decode(c.plan, codes.data(), c.scales.data(), 1,
                          static_cast<float*>(got.data()), n);
        same &= expected.Same(got);
        const Format to{8, 8};
        kCodecPlain.requantize(format, to, codes.data(), to_expected.data(), n);
        set.table->requantize(format, to, codes.data(), to_got.data(), n);
        same &= to_expected.Same(to_got);
        const CodecPlan reading(to);
        kCodecPlain.read(format, reading, codes.data(), 0.1f,
                         static_cast<float*>(expected.data()), n);
        set.table->read(format, reading, codes.data(), 0.1f,
                        static_cast<float*>(got.data()), n);
        same &= expected.Same(got);
      }
    }
    Check(same, std::string(set.name) + " size " + std::to_string(n));
  }
}

void TestAbsMax(const Kernels& set) {
  for (int n : {0, 1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000}) {
    for (int kind = 0; kind < 5; ++kind) {
      std::vector<float> x(n), seen(n, 0.0f);
      for (float& value : x) {
        const uint32_t bits = static_cast<uint32_t>(generator());
        value =
            FromBits(kind == 0   ? bits
                     : kind == 1 ? bits & 0x807FFFFFu    // denormals
                     : kind == 2 ? bits | 0x7F800000u    // Inf and NaN
                     : kind == 3 ? (bits & 0x80FFFFFFu)  // about the smallest normal
                                 : 0u);
      }
      for (int i = 0; i < n; i += 2) seen[i] = 0x1p-120f;
      FlushDenormals flush((n & 1) != 0);
      const float expected = kCodecPlain.abs_max(x.data(), n);
      const std::string name = std::string(set.name) + " size " + std::to_string(n);
      Check(Bits(set.table->abs_max(x.data(), n)) == Bits(expected), name + " abs_max");
      std::vector<float> wanted = seen;
      kCodecPlain.abs_max_lanes(x.data(), wanted.data(), n);
      set.table->abs_max_lanes(x.data(), seen.data(), n);
      Check(n == 0 || std::memcmp(wanted.data(), seen.data(), n * 4) == 0,
            name + " abs_max_lanes");
    }
  }
}

int Main() {
  TestTables();
  for (const Kernels& set : VectorKernels()) {
    TestFloats(set);
    TestEveryMantissa(set);
    TestCodes(set);
    TestSizes(set);
    TestAbsMax(set);
  }
  return Report();
}

}  // namespace
}  // namespace lns

int main() { return lns::Main(); }
