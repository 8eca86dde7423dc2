// What core/format.h declares but is too large to inline.

#include <limits>
#include <map>
#include <memory>
#include <mutex>

#include "core/format.h"

namespace lns {

std::string Format::Error() const {
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

Tables::Tables(int base_factor) : bucket_addend(), bucket_exponent() {
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

  if (base_factor > kMaxBucketBaseFactor) return;
  const int32_t buckets = base_factor == kMaxBucketBaseFactor ? 32 : 16;
  const int32_t width = (1 << 23) / buckets;
  int r = 0;  // the first threshold at or above the bucket
  for (int32_t i = 0; i < buckets; ++i) {
    bucket_exponent[i] = r;
    const int32_t end = (i + 1) * width;
    const int32_t next = r < base_factor
                             ? static_cast<int32_t>(Bits(threshold[r]) & kMantissaMask)
                             : end;
    if (next >= end) continue;
    bucket_addend[i] = end - next;
    ++r;
  }
  // Repeated, so that a lookup may take 5 bits of index in either case.
  for (int32_t i = buckets; i < kMaxBuckets; ++i) {
    bucket_addend[i] = bucket_addend[i - buckets];
    bucket_exponent[i] = bucket_exponent[i - buckets];
  }
}

const Tables& Tables::Of(int base_factor) {
  static std::mutex mutex;
  static auto* cache = new std::map<int, std::unique_ptr<Tables>>();
  std::lock_guard<std::mutex> lock(mutex);
  auto& entry = (*cache)[base_factor];
  if (entry == nullptr) entry = std::make_unique<Tables>(base_factor);
  return *entry;
}

}  // namespace lns
