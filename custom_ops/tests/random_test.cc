// The counter-based random bits: known values, uniformity, independence of seeds.

#include <cmath>
#include <cstdio>
#include <vector>

#include "core/random.h"
#include "tests/check.h"

namespace lns {
namespace {

void Run() {
  // Of tf_lns.reference.random_bits.
  Check(RandomBits(RandomKey(0), 0) == 0xDD8235A0u, "seed 0, index 0");
  Check(RandomBits(RandomKey(1), 123456789) == 0xF5AEE018u, "seed 1");
  Check(RandomBits(RandomKey(static_cast<uint64_t>(-5)), 7) == 0xE245846Du, "seed -5");

  constexpr int kCount = 1 << 20;
  for (uint64_t seed : {0ull, 1ull, 0x123456789ABCDEFull}) {
    const RandomKey key(seed), next(seed + 1);
    int ones[32] = {}, equal_to_next[32] = {}, equal_to_last[32] = {};
    std::vector<int> top(256, 0), low(256, 0);
    uint32_t last = 0;
    for (int i = 0; i < kCount; ++i) {
      const uint32_t bits = RandomBits(key, i), other = RandomBits(next, i);
      ++top[bits >> 24];
      ++low[bits & 255];
      for (int b = 0; b < 32; ++b) {
        ones[b] += bits >> b & 1;
        equal_to_next[b] += (~(bits ^ other)) >> b & 1;
        equal_to_last[b] += (~(bits ^ last)) >> b & 1;
      }
      last = bits;
    }
    const double spread = 6.0 * std::sqrt(kCount / 4.0);  // six standard deviations
    for (int b = 0; b < 32; ++b) {
      Check(std::abs(ones[b] - kCount / 2) < spread, "a bit is fair");
      Check(std::abs(equal_to_next[b] - kCount / 2) < spread, "seeds are independent");
      Check(std::abs(equal_to_last[b] - kCount / 2) < spread, "draws are independent");
    }
    for (const auto& counts : {top, low}) {
      double chi = 0.0;
      for (int count : counts) {
        const double off = count - kCount / 256.0;
        chi += off * off / (kCount / 256.0);
      }
      Check(std::fabs(chi - 255.0) < 6.0 * std::sqrt(2.0 * 255.0), "bytes are uniform");
    }
  }
  Check(RandomBits(RandomKey(3), 5) == RandomBits(RandomKey(3), 5 + (1ull << 32)),
        "the index counts modulo 2^32");
}

}  // namespace
}  // namespace lns

int main() {
  lns::Run();
  return lns::Report();
}
