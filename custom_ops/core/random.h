// Counter-based random bits: a function of (seed, flat index) and of nothing else, so
// that any split of the work over threads or devices draws the same numbers.
// reference.random_bits.

#ifndef TF_LNS_CORE_RANDOM_H_
#define TF_LNS_CORE_RANDOM_H_

#include <cstdint>

#include "core/format.h"

namespace lns {

struct RandomKey {
  uint32_t key0 = 0;
  uint32_t key1 = 0;

  RandomKey() = default;
  explicit LNS_INLINE RandomKey(uint64_t seed) {  // splitmix64
    uint64_t x = seed + 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    x ^= x >> 31;
    key0 = static_cast<uint32_t>(x);
    key1 = static_cast<uint32_t>(x >> 32);
  }
};

constexpr uint32_t kRandomMultiplier0 = 0x7FEB352Du;
constexpr uint32_t kRandomMultiplier1 = 0x846CA68Bu;

// 32 uniform bits for the element at flat index `index`.
LNS_INLINE uint32_t RandomBits(const RandomKey& key, uint64_t index) {
  uint32_t x = static_cast<uint32_t>(index) ^ key.key0;
  x = (x ^ (x >> 16)) * kRandomMultiplier0;
  x += key.key1;
  x = (x ^ (x >> 15)) * kRandomMultiplier1;
  return x ^ (x >> 16);
}

}  // namespace lns

#endif  // TF_LNS_CORE_RANDOM_H_
