// The LNS-Madam step with AVX-512 VBMI: that of madam_avx512.cc, and a faster one for
// the one-byte second moment, whose table of 128 entries fits byte permutes.

#if defined(__x86_64__)

#ifdef __GNUC__
// GCC 12 takes the undefined third operand of its own intrinsics for a fault.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "kernels/madam_kernels.h"

namespace lns {
namespace {
#include "kernels/madam_avx512.inc"

// Three tables of 128 bytes: each a permute of two registers.
class GrowthTables {
 public:
  LANES_INLINE explicit GrowthTables(const CompactTables& tables) {
    const uint8_t* all[3] = {tables.growth_whole, tables.growth_rest_high,
                             tables.growth_rest_low};
    for (int i = 0; i < 3; ++i) {
      half_[i][0] = _mm512_loadu_si512(all[i]);
      half_[i][1] = _mm512_loadu_si512(all[i] + 64);
    }
  }

  LANES_INLINE void operator()(B x, B* whole, B* rest_high, B* rest_low) const {
    B* out[3] = {whole, rest_high, rest_low};
    for (int i = 0; i < 3; ++i) {
      *out[i] = _mm512_permutex2var_epi8(half_[i][0], x, half_[i][1]);
    }
  }

 private:
  __m512i half_[3][2];
};

#include "kernels/madam_vector.inc"

}  // namespace

const MadamKernels kMadamAvx512Vbmi = {Step, StepCompact, ShiftCompactBytes, Additive};

}  // namespace lns

#endif  // defined(__x86_64__)
