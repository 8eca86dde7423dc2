// The codec for AVX-512: the names that codec_vector.inc is written in.

#if defined(__x86_64__)

// GCC takes the deliberately undefined operands in its own header for mistakes.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "kernels/codec_kernels.h"

namespace lns {
namespace {

constexpr int kLanes = 16;
using Floats = __m512;
using Ints = __m512i;
using Mask = __mmask16;

LNS_INLINE Ints Set(int32_t value) { return _mm512_set1_epi32(value); }
LNS_INLINE Floats Set(float value) { return _mm512_set1_ps(value); }
LNS_INLINE Ints AsInts(Floats a) { return _mm512_castps_si512(a); }
LNS_INLINE Floats AsFloats(Ints a) { return _mm512_castsi512_ps(a); }

LNS_INLINE Ints Load(const void* from) { return _mm512_loadu_si512(from); }
LNS_INLINE void Store(void* to, Ints a) { _mm512_storeu_si512(to, a); }
LNS_INLINE void Stream(void* to, Ints a) {
  _mm512_stream_si512(static_cast<Ints*>(to), a);
}
LNS_INLINE Ints LoadCodes(const int8_t* from) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
LNS_INLINE Ints LoadCodes(const int16_t* from) {
  return _mm512_cvtepi16_epi32(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
LNS_INLINE void StoreCodes(int8_t* to, Ints a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a));
}
LNS_INLINE void StoreCodes(int16_t* to, Ints a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(a));
}

LNS_INLINE Floats Mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
LNS_INLINE Floats Div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
LNS_INLINE Floats Sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
LNS_INLINE Floats Fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
LNS_INLINE Ints Round(Floats a) { return _mm512_cvtps_epi32(a); }
LNS_INLINE Floats Convert(Ints a) { return _mm512_cvtepi32_ps(a); }

LNS_INLINE Ints Add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
LNS_INLINE Ints Sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
LNS_INLINE Ints MulLow(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
LNS_INLINE Ints And(Ints a, Ints b) { return _mm512_and_si512(a, b); }
LNS_INLINE Ints Or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
LNS_INLINE Ints Xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
LNS_INLINE Ints Abs(Ints a) { return _mm512_abs_epi32(a); }
LNS_INLINE Ints Min(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
LNS_INLINE Ints Max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
LNS_INLINE Ints MinUnsigned(Ints a, Ints b) { return _mm512_min_epu32(a, b); }
LNS_INLINE Ints ShiftLeft(Ints a, Ints count) { return _mm512_sllv_epi32(a, count); }
LNS_INLINE Ints ShiftRight(Ints a, Ints count) { return _mm512_srlv_epi32(a, count); }
template <int kCount>
LNS_INLINE Ints ShiftLeft(Ints a) {
  return _mm512_slli_epi32(a, kCount);
}
template <int kCount>
LNS_INLINE Ints ShiftRight(Ints a) {
  return _mm512_srli_epi32(a, kCount);
}
template <int kCount>
LNS_INLINE Ints ShiftRightSigned(Ints a) {
  return _mm512_srai_epi32(a, kCount);
}
// `a` with the sign bit of `sign`.
LNS_INLINE Ints WithSign(Ints a, Ints sign) {
  return _mm512_ternarylogic_epi32(a, sign, Set(INT32_MIN), 0xD8);  // sign bit ? b : a
}

// Negates `a` where `sign` is negative. For a >= 0 that is 0 where `sign` is 0.
LNS_INLINE Ints NegateLike(Ints a, Ints sign) {
  return _mm512_mask_sub_epi32(a, _mm512_movepi32_mask(sign), _mm512_setzero_si512(),
                               a);
}

LNS_INLINE Mask Greater(Ints a, Ints b) { return _mm512_cmpgt_epi32_mask(a, b); }
LNS_INLINE Mask Either(Mask a, Mask b) { return a | b; }
LNS_INLINE Mask ButNot(Mask a, Mask b) { return a & ~b; }
LNS_INLINE Ints Select(Mask m, Ints a, Ints b) {
  return _mm512_mask_mov_epi32(b, m, a);
}
LNS_INLINE Ints Keep(Mask m, Ints a) { return _mm512_maskz_mov_epi32(m, a); }
LNS_INLINE bool Any(Mask m) { return m != 0; }
LNS_INLINE uint32_t LaneBits(Mask m) { return m; }

// Small tables in registers; only the lowest bits of an index count.
struct Table8 {
  Ints entries;
  explicit LNS_INLINE Table8(const void* p)
      : entries(_mm512_broadcast_i64x4(
            _mm256_loadu_si256(static_cast<const __m256i*>(p)))) {}
  LNS_INLINE Ints operator[](Ints i) const {
    return _mm512_permutexvar_epi32(i, entries);
  }
};
struct Table16 {
  Ints entries;
  explicit LNS_INLINE Table16(const void* p) : entries(Load(p)) {}
  LNS_INLINE Ints operator[](Ints i) const {
    return _mm512_permutexvar_epi32(i, entries);
  }
};
struct Table32 {
  Ints low, high;
  explicit LNS_INLINE Table32(const int32_t* p) : low(Load(p)), high(Load(p + 16)) {}
  LNS_INLINE Ints operator[](Ints i) const {
    return _mm512_permutex2var_epi32(low, i, high);
  }
};
LNS_INLINE Ints Gather(const void* table, Ints i) {
  return _mm512_i32gather_epi32(i, table, 4);
}

}  // namespace
}  // namespace lns

#define LNS_KERNELS kCodecAvx512
#include "kernels/codec_vector.inc"

#endif  // __x86_64__
