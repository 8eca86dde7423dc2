// Formats of the logarithmic number system and the tables that follow from them.
//
// Plain C++ without TensorFlow. The definitions are those of tf_lns/reference/; names
// agree.

#ifndef TF_LNS_CORE_FORMAT_H_
#define TF_LNS_CORE_FORMAT_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

// For every function defined in core/. The headers are compiled for several instruction
// sets; of a function that is not inlined the linker would keep one copy, perhaps one
// that this CPU cannot run. What is too large for it is defined in a
// kernels/*_plain.cc.
#define LNS_INLINE inline __attribute__((always_inline))

namespace lns {

constexpr int kMinBits = 2;
constexpr int kMaxBits = 16;
constexpr int kMaxBaseFactor = 4096;

// Buckets of a mantissa: 16, or 32 for base factor 16; see Tables::bucket_addend.
constexpr int kMaxBucketBaseFactor = 16;
constexpr int kMaxBuckets = 32;

// Smallest normal float32, 2^-126. Anything below it in magnitude counts as zero.
constexpr uint32_t kMinNormalBits = 0x00800000u;
constexpr uint32_t kInfBits = 0x7F800000u;
constexpr uint32_t kMagnitudeMask = 0x7FFFFFFFu;
constexpr uint32_t kMantissaMask = 0x007FFFFFu;

// Fraction bits of the fixed-point logarithm behind stochastic rounding.
constexpr int kLog2FractionBits = 24;

LNS_INLINE uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

LNS_INLINE float FromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// The float32 nearest to x, as a double: a denormal survives whatever the flush mode.
LNS_INLINE double NearestFloat(double x) {
  if (std::fabs(x) >= 0x1p-126) return static_cast<double>(static_cast<float>(x));
  return std::nearbyint(x * 0x1p149) * 0x1p-149;
}

// float32(scale * factor), at least 2^-126. The product of two float32 is exact in
// double.
LNS_INLINE float ScaleTimes(float scale, double factor) {
  const double product = static_cast<double>(scale) * factor;
  return product < 0x1p-126 ? FromBits(kMinNormalBits) : static_cast<float>(product);
}

// A code c in -L..L, L = 2^(bits-1) - 1, stands for sign(c) * scale *
// 2^((|c|-1)/base_factor).
struct Format {
  int bits = 8;
  int base_factor = 8;

  LNS_INLINE int max_code() const { return (1 << (bits - 1)) - 1; }
  LNS_INLINE int max_exponent() const { return max_code() - 1; }
  LNS_INLINE int log2_base_factor() const {
    int log2 = 0;
    while ((1 << log2) < base_factor) ++log2;
    return log2;
  }
  LNS_INLINE double octaves() const {
    return static_cast<double>(max_exponent()) / base_factor;
  }
  // float32(2^-octaves): abs-max times this is the scale.
  LNS_INLINE double abs_max_to_scale() const {
    return NearestFloat(std::exp2(-octaves()));
  }

  // An empty string where the format is valid, else what is wrong with it.
  std::string Error() const;
};

// Tables of one base factor.
struct Tables {
  // decode[r] = float32(2^(r/base_factor)).
  std::vector<float> decode;
  // threshold[r]: smallest float32 at or above 2^((2r+1)/(2 base_factor)): where
  // rounding of a mantissa in [1, 2) goes from exponent r to r + 1.
  std::vector<float> threshold;
  // log2(1 + (i + t)/256) as parabolas in t, kLog2FractionBits fraction bits.
  std::vector<int32_t> log2_start, log2_slope, log2_square;

  // The thresholds once more for base factors up to kMaxBucketBaseFactor, so that a
  // vector kernel needs no search: mantissas fall into equal buckets that hold at most
  // one threshold each. Adding bucket_addend[bucket] to the bits of a float carries it
  // into the next bucket if it is at or above that threshold; bucket_exponent[bucket]
  // of the sum is the exponent within the octave.
  int32_t bucket_addend[kMaxBuckets];
  int32_t bucket_exponent[kMaxBuckets];

  explicit Tables(int base_factor);

  // Tables are made once per base factor and live as long as the process.
  static const Tables& Of(int base_factor);
};

// Scale after Requantize: scale * float32(2^(octaves1 - octaves2)), at least 2^-126;
// Inf where that overflows.
LNS_INLINE float RequantizeScale(float scale, const Format& from, const Format& to) {
  return ScaleTimes(scale, NearestFloat(std::exp2(from.octaves() - to.octaves())));
}

LNS_INLINE bool IsValidScale(float scale) {
  const uint32_t bits = Bits(scale);
  return bits >= kMinNormalBits && bits < kInfBits;
}

}  // namespace lns

#endif  // TF_LNS_CORE_FORMAT_H_
