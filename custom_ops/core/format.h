// Formats of the logarithmic number system and the tables that follow from them.
//
// Plain C++ without TensorFlow. The definitions are those of tf_lns/reference.py; names
// agree.

#ifndef TF_LNS_CORE_FORMAT_H_
#define TF_LNS_CORE_FORMAT_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace lns {

constexpr int kMinBits = 2;
constexpr int kMaxBits = 16;
constexpr int kMaxBaseFactor = 4096;

// Smallest normal float32, 2^-126. Anything below it in magnitude counts as zero.
constexpr uint32_t kMinNormalBits = 0x00800000u;
constexpr uint32_t kInfBits = 0x7F800000u;
constexpr uint32_t kMagnitudeMask = 0x7FFFFFFFu;
constexpr uint32_t kMantissaMask = 0x007FFFFFu;

// Fraction bits of the fixed-point logarithm behind stochastic rounding.
constexpr int kLog2FractionBits = 24;

inline uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float FromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// A code c in -L..L, L = 2^(bits-1) - 1, stands for sign(c) * scale *
// 2^((|c|-1)/base_factor).
struct Format {
  int bits = 8;
  int base_factor = 8;

  int max_code() const { return (1 << (bits - 1)) - 1; }
  int max_exponent() const { return max_code() - 1; }
  int log2_base_factor() const {
    int log2 = 0;
    while ((1 << log2) < base_factor) ++log2;
    return log2;
  }
  double octaves() const { return static_cast<double>(max_exponent()) / base_factor; }
  // float32(2^-octaves): abs-max times this is the scale.
  float abs_max_to_scale() const { return static_cast<float>(std::exp2(-octaves())); }

  // An empty string where the format is valid, else what is wrong with it.
  std::string Error() const {
    if (bits < kMinBits || bits > kMaxBits) {
      return "bits must be 2 to 16, got " + std::to_string(bits);
    }
    if (base_factor < 1 || base_factor > kMaxBaseFactor ||
        (base_factor & (base_factor - 1)) != 0) {
      return "base_factor must be a power of two, 1 to 4096, got " +
             std::to_string(base_factor);
    }
    return "";
  }
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

  explicit Tables(int base_factor) {
    for (int r = 0; r < base_factor; ++r) {
      decode.push_back(
          static_cast<float>(std::exp2(static_cast<double>(r) / base_factor)));
      const double exact = std::exp2((2.0 * r + 1.0) / (2.0 * base_factor));
      float rounded = static_cast<float>(exact);
      if (rounded < exact) rounded = std::nextafter(rounded, 3.0f);
      threshold.push_back(rounded);
    }
    const double unit = std::exp2(kLog2FractionBits);
    for (int i = 0; i < 256; ++i) {
      const double start = std::log2(1.0 + i / 256.0);
      const double middle = std::log2(1.0 + (i + 0.5) / 256.0);
      const double end = std::log2(1.0 + (i + 1.0) / 256.0);
      const double square = 2.0 * (start + end - 2.0 * middle);
      const double slope = end - start - square;
      log2_start.push_back(static_cast<int32_t>(std::nearbyint(start * unit)));
      log2_slope.push_back(static_cast<int32_t>(std::nearbyint(slope * unit)));
      log2_square.push_back(static_cast<int32_t>(std::nearbyint(square * unit)));
    }
  }

  // Tables are made once per base factor and live as long as the process.
  static const Tables& Of(int base_factor) {
    static std::mutex mutex;
    static std::map<int, std::unique_ptr<Tables>>* cache =
        new std::map<int, std::unique_ptr<Tables>>();
    std::lock_guard<std::mutex> lock(mutex);
    auto& entry = (*cache)[base_factor];
    if (entry == nullptr) entry = std::make_unique<Tables>(base_factor);
    return *entry;
  }
};

// float32(2^(octaves1 - octaves2)): factor from a scale to the scale after Requantize.
inline float RequantizeScaleFactor(const Format& from, const Format& to) {
  return static_cast<float>(std::exp2(from.octaves() - to.octaves()));
}

inline float RequantizeScale(float scale, const Format& from, const Format& to) {
  const float moved = scale * RequantizeScaleFactor(from, to);
  return moved < FromBits(kMinNormalBits) ? FromBits(kMinNormalBits) : moved;
}

inline bool IsValidScale(float scale) {
  const uint32_t bits = Bits(scale);
  return bits >= kMinNormalBits && bits < kInfBits;
}

}  // namespace lns

#endif  // TF_LNS_CORE_FORMAT_H_
