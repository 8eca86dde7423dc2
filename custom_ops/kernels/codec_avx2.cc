// The codec for AVX2: the names that codec_vector.inc is written in.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "kernels/codec_kernels.h"

namespace lns {
namespace {

constexpr int kLanes = 8;
using Floats = __m256;
using Ints = __m256i;
using Mask = __m256i;  // all bits of a lane, or none

LNS_INLINE Ints Set(int32_t value) { return _mm256_set1_epi32(value); }
LNS_INLINE Floats Set(float value) { return _mm256_set1_ps(value); }
LNS_INLINE Ints AsInts(Floats a) { return _mm256_castps_si256(a); }
LNS_INLINE Floats AsFloats(Ints a) { return _mm256_castsi256_ps(a); }

LNS_INLINE Ints Load(const void* from) {
  return _mm256_loadu_si256(static_cast<const Ints*>(from));
}
LNS_INLINE void Store(void* to, Ints a) {
  _mm256_storeu_si256(static_cast<Ints*>(to), a);
}
LNS_INLINE void Stream(void* to, Ints a) {
  _mm256_stream_si256(static_cast<Ints*>(to), a);
}
LNS_INLINE Ints LoadCodes(const int8_t* from) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
LNS_INLINE Ints LoadCodes(const int16_t* from) {
  return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
LNS_INLINE __m128i Narrow(Ints a) {
  return _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}
LNS_INLINE void StoreCodes(int8_t* to, Ints a) {
  const __m128i words = Narrow(a);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}
LNS_INLINE void StoreCodes(int16_t* to, Ints a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), Narrow(a));
}

LNS_INLINE Floats Mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
LNS_INLINE Floats Div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
LNS_INLINE Floats Sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
LNS_INLINE Floats Fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
LNS_INLINE Ints Round(Floats a) { return _mm256_cvtps_epi32(a); }
LNS_INLINE Floats Convert(Ints a) { return _mm256_cvtepi32_ps(a); }

LNS_INLINE Ints Add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
LNS_INLINE Ints Sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
LNS_INLINE Ints MulLow(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
LNS_INLINE Ints And(Ints a, Ints b) { return _mm256_and_si256(a, b); }
LNS_INLINE Ints Or(Ints a, Ints b) { return _mm256_or_si256(a, b); }
LNS_INLINE Ints Xor(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
LNS_INLINE Ints Abs(Ints a) { return _mm256_abs_epi32(a); }
LNS_INLINE Ints Min(Ints a, Ints b) { return _mm256_min_epi32(a, b); }
LNS_INLINE Ints Max(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
LNS_INLINE Ints MinUnsigned(Ints a, Ints b) { return _mm256_min_epu32(a, b); }
LNS_INLINE Ints ShiftLeft(Ints a, Ints count) { return _mm256_sllv_epi32(a, count); }
LNS_INLINE Ints ShiftRight(Ints a, Ints count) { return _mm256_srlv_epi32(a, count); }
template <int kCount>
LNS_INLINE Ints ShiftLeft(Ints a) {
  return _mm256_slli_epi32(a, kCount);
}
template <int kCount>
LNS_INLINE Ints ShiftRight(Ints a) {
  return _mm256_srli_epi32(a, kCount);
}
template <int kCount>
LNS_INLINE Ints ShiftRightSigned(Ints a) {
  return _mm256_srai_epi32(a, kCount);
}
// `a`, which is not negative, with the sign bit of `sign`.
LNS_INLINE Ints WithSign(Ints a, Ints sign) { return Or(a, And(sign, Set(INT32_MIN))); }

// Negates `a` where `sign` is negative. For a >= 0 that is 0 where `sign` is 0.
LNS_INLINE Ints NegateLike(Ints a, Ints sign) { return _mm256_sign_epi32(a, sign); }

LNS_INLINE Mask Greater(Ints a, Ints b) { return _mm256_cmpgt_epi32(a, b); }
LNS_INLINE Mask Either(Mask a, Mask b) { return _mm256_or_si256(a, b); }
LNS_INLINE Mask ButNot(Mask a, Mask b) { return _mm256_andnot_si256(b, a); }
LNS_INLINE Ints Select(Mask m, Ints a, Ints b) { return _mm256_blendv_epi8(b, a, m); }
LNS_INLINE Ints Keep(Mask m, Ints a) { return _mm256_and_si256(m, a); }
LNS_INLINE bool Any(Mask m) { return !_mm256_testz_si256(m, m); }
LNS_INLINE uint32_t LaneBits(Mask m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m)));
}

LNS_INLINE Ints Gather(const void* table, Ints i) {
  return _mm256_i32gather_epi32(static_cast<const int*>(table), i, 4);
}
// Small tables; only the lowest bits of an index count.
struct Table8 {
  Ints entries;
  explicit LNS_INLINE Table8(const void* p) : entries(Load(p)) {}
  LNS_INLINE Ints operator[](Ints i) const {
    return _mm256_permutevar8x32_epi32(entries, i);
  }
};
struct Table16 {
  Ints low, high;
  explicit LNS_INLINE Table16(const void* p)
      : low(Load(p)), high(Load(static_cast<const int32_t*>(p) + 8)) {}
  LNS_INLINE Ints operator[](Ints i) const {
    const Floats a = AsFloats(_mm256_permutevar8x32_epi32(low, i));
    const Floats b = AsFloats(_mm256_permutevar8x32_epi32(high, i));
    return AsInts(_mm256_blendv_ps(a, b, AsFloats(ShiftLeft<28>(i))));
  }
};
struct Table32 {
  const int32_t* entries;  // not in registers: four permutes and their blends cost more
  explicit LNS_INLINE Table32(const int32_t* p) : entries(p) {}
  LNS_INLINE Ints operator[](Ints i) const { return Gather(entries, And(i, Set(31))); }
};

}  // namespace
}  // namespace lns

#define LNS_KERNELS kCodecAvx2
#include "kernels/codec_vector.inc"

#endif  // __x86_64__
