// The LNS-Madam step with AVX2.

#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/madam_kernels.h"

namespace lns {
namespace {

// --- Lanes for madam_vector.inc: 8 floats -------------------------------------------

#define LANES_INLINE inline __attribute__((always_inline))
#define LANES_NOINLINE __attribute__((noinline))

using F = __m256;
using I = __m256i;
using W = __m256i;
using B = __m256i;
struct M {  // all bits of a lane, or none
  __m256i bits;
};
constexpr int64_t kLanes = 8;
constexpr int64_t kBytes = 32;

LANES_INLINE F Set(float x) { return _mm256_set1_ps(x); }
LANES_INLINE I SetInt(uint32_t x) { return _mm256_set1_epi32(static_cast<int32_t>(x)); }
LANES_INLINE W SetWide(int32_t x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
LANES_INLINE F Load(const float* p) { return _mm256_loadu_ps(p); }
LANES_INLINE void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
LANES_INLINE I AsInt(F x) { return _mm256_castps_si256(x); }
LANES_INLINE F AsFloat(I x) { return _mm256_castsi256_ps(x); }
LANES_INLINE I LoadInts(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
LANES_INLINE I Iota(uint32_t first) {
  return _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), SetInt(first));
}

LANES_INLINE F Add(F a, F b) { return _mm256_add_ps(a, b); }
LANES_INLINE F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
LANES_INLINE F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
LANES_INLINE F Div(F a, F b) { return _mm256_div_ps(a, b); }
LANES_INLINE F Sqrt(F x) { return _mm256_sqrt_ps(x); }
LANES_INLINE F Min(F a, F b) { return _mm256_min_ps(a, b); }
LANES_INLINE F Max(F a, F b) { return _mm256_max_ps(a, b); }
LANES_INLINE F Abs(F x) { return _mm256_andnot_ps(Set(-0.0f), x); }
LANES_INLINE F Negate(F x) { return _mm256_xor_ps(x, Set(-0.0f)); }
// x with its magnitude clipped, also where x is infinite.
LANES_INLINE F ClipMagnitude(F x, F bound) { return Min(Max(x, Negate(bound)), bound); }
LANES_INLINE F MulAdd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
LANES_INLINE F NegMulAdd(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
LANES_INLINE F RoundEven(F x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LANES_INLINE F Floor(F x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
LANES_INLINE I ToIntEven(F x) { return _mm256_cvtps_epi32(x); }
LANES_INLINE F ToFloat(I x) { return _mm256_cvtepi32_ps(x); }

LANES_INLINE I Add(I a, I b) { return _mm256_add_epi32(a, b); }
LANES_INLINE I Sub(I a, I b) { return _mm256_sub_epi32(a, b); }
LANES_INLINE I MulLow(I a, I b) { return _mm256_mullo_epi32(a, b); }
LANES_INLINE I And(I a, I b) { return _mm256_and_si256(a, b); }
LANES_INLINE I Or(I a, I b) { return _mm256_or_si256(a, b); }
LANES_INLINE I Xor(I a, I b) { return _mm256_xor_si256(a, b); }
LANES_INLINE I AbsInt(I x) { return _mm256_abs_epi32(x); }
LANES_INLINE I MinInt(I a, I b) { return _mm256_min_epi32(a, b); }
LANES_INLINE I MaxInt(I a, I b) { return _mm256_max_epi32(a, b); }
template <int kBits>
LANES_INLINE I ShiftRight(I x) {
  return _mm256_srli_epi32(x, kBits);
}
template <int kBits>
LANES_INLINE I ShiftRightSigned(I x) {
  return _mm256_srai_epi32(x, kBits);
}
template <int kBits>
LANES_INLINE I ShiftLeft(I x) {
  return _mm256_slli_epi32(x, kBits);
}
LANES_INLINE I RotateRight(I x, I bits) {
  return Or(_mm256_srlv_epi32(x, bits), _mm256_sllv_epi32(x, Sub(SetInt(32), bits)));
}

template <int kPredicate>
LANES_INLINE M Compare(F a, F b) {
  return M{AsInt(_mm256_cmp_ps(a, b, kPredicate))};
}
LANES_INLINE M CompareGe(F a, F b) { return Compare<_CMP_GE_OQ>(a, b); }
// Also where one is NaN.
LANES_INLINE M CompareNotLess(F a, F b) { return Compare<_CMP_NLT_UQ>(a, b); }
LANES_INLINE M GreaterInt(I a, I b) { return M{_mm256_cmpgt_epi32(a, b)}; }
LANES_INLINE M NoLanes() { return M{_mm256_setzero_si256()}; }
LANES_INLINE M Both(M a, M b) { return M{And(a.bits, b.bits)}; }
LANES_INLINE M Either(M a, M b) { return M{Or(a.bits, b.bits)}; }
LANES_INLINE M Not(M a) { return M{Xor(a.bits, SetInt(0xFFFFFFFFu))}; }
LANES_INLINE M Differ(I a, I b) { return M{Xor(a, b)}; }  // any bit counts in Any
LANES_INLINE M Differs(I a, I b) { return Not(M{_mm256_cmpeq_epi32(a, b)}); }
LANES_INLINE bool Any(M m) { return !_mm256_testz_si256(m.bits, m.bits); }
LANES_INLINE int Count(M m) {
  return __builtin_popcount(static_cast<uint32_t>(_mm256_movemask_ps(AsFloat(m.bits))));
}
LANES_INLINE F Keep(M m, F x) { return _mm256_and_ps(AsFloat(m.bits), x); }
LANES_INLINE I KeepInt(M m, I x) { return And(m.bits, x); }
LANES_INLINE I SelectInt(M m, I yes, I no) {
  return _mm256_blendv_epi8(no, yes, m.bits);
}
LANES_INLINE F AddWhere(M m, F a, F b) { return Add(a, Keep(m, b)); }
LANES_INLINE F ReciprocalRootWhere(M m, F x) { return Keep(m, _mm256_rsqrt_ps(x)); }
LANES_INLINE F FlushDenormals(F x) {
  return Keep(GreaterInt(AsInt(Abs(x)), SetInt(kMinNormalBits - 1)), x);
}

LANES_INLINE I Lookup16(const uint32_t* table, I index) {
  const F low = AsFloat(_mm256_permutevar8x32_epi32(LoadInts(table), index));
  const F high = AsFloat(_mm256_permutevar8x32_epi32(LoadInts(table + 8), index));
  return AsInt(_mm256_blendv_ps(low, high, AsFloat(ShiftLeft<28>(index))));
}
LANES_INLINE I Lookup8(const uint32_t* table, I index) {
  return _mm256_permutevar8x32_epi32(LoadInts(table), index);
}
LANES_INLINE I Gather(const int32_t* table, I index) {
  return _mm256_i32gather_epi32(table, index, 4);
}

LANES_INLINE I LoadCodes(const int16_t* p) {
  return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
LANES_INLINE I LoadCodes(const int8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
LANES_INLINE I LoadBytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
LANES_INLINE __m128i Narrow(I x) {  // to int16, which the values fit
  return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
LANES_INLINE void StoreCodes(int16_t* p, I x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), Narrow(x));
}
LANES_INLINE void StoreCodes(int8_t* p, I x) {
  const __m128i narrow = Narrow(x);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(narrow, narrow));
}
LANES_INLINE void StoreBytes(uint8_t* p, I x) {
  const __m128i narrow = Narrow(x);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(narrow, narrow));
}
template <typename Code>
LANES_INLINE I SignBits(const Code* p) {
  return And(LoadCodes(p), SetInt(0x80000000u));
}

LANES_INLINE W LoadWide(const int16_t* p) { return LoadInts(p); }
LANES_INLINE W LoadWide(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
LANES_INLINE void StoreWide(int16_t* p, W x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
}
LANES_INLINE void StoreWide(int8_t* p, W x) {
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}
LANES_INLINE W MinWide(W a, W b) { return _mm256_min_epi16(a, b); }
LANES_INLINE W MaxWide(W a, W b) { return _mm256_max_epi16(a, b); }
LANES_INLINE W NegateWide(W x) { return _mm256_sub_epi16(_mm256_setzero_si256(), x); }
LANES_INLINE W NegateWhereNegative(W x, W sign) { return _mm256_sign_epi16(x, sign); }
LANES_INLINE W PackSaturated(I a, I b) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
}

// Codes after steps in -32767..32767: the sign stays, and 0; magnitudes stay within 1
// and `top` and, if `capped`, do not grow past `cap`.
LANES_INLINE W MoveCodes(W old, W step, W top, W cap, bool capped) {
  const W magnitude = _mm256_abs_epi16(old);
  if (capped) top = MaxWide(cap, magnitude);
  W moved = _mm256_subs_epi16(magnitude, _mm256_sign_epi16(step, old));
  moved = MinWide(MaxWide(moved, SetWide(1)), top);
  return _mm256_sign_epi16(moved, old);  // 0 where the code is 0
}

LANES_INLINE B SetByte(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
LANES_INLINE B LoadRaw(const uint8_t* p) { return LoadInts(p); }
LANES_INLINE void StoreRaw(uint8_t* p, B x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
}
LANES_INLINE B MinByte(B a, B b) { return _mm256_min_epu8(a, b); }
LANES_INLINE B MaxByte(B a, B b) { return _mm256_max_epu8(a, b); }
LANES_INLINE B SubByte(B a, B b) { return _mm256_sub_epi8(a, b); }
LANES_INLINE B AddSaturated(B a, B b) { return _mm256_adds_epu8(a, b); }
LANES_INLINE B SubSaturated(B a, B b) { return _mm256_subs_epu8(a, b); }
LANES_INLINE B NegativeToZero(B x) { return _mm256_max_epi8(x, SetByte(0)); }
LANES_INLINE B KeepWhereNonzero(B a, B x) {
  return _mm256_andnot_si256(_mm256_cmpeq_epi8(a, SetByte(0)), x);
}
LANES_INLINE B Shuffle(const uint8_t* table, B index) {
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), index);
}
// x + 1 where the number of two bytes is greater.
LANES_INLINE B AddOneWhereGreater(B x, B high, B low, B than_high, B than_low) {
  const B equal = _mm256_cmpeq_epi8(high, than_high);
  const B more =
      Or(SubSaturated(high, than_high), And(equal, SubSaturated(low, than_low)));
  const B not_greater = _mm256_cmpeq_epi8(more, SetByte(0));
  return _mm256_add_epi8(_mm256_add_epi8(x, SetByte(1)), not_greater);
}
// In order, after an offset, saturated. *large: one was `limit` or more.
LANES_INLINE B PackBytes(const I x[4], int32_t offset, int32_t limit, bool* large) {
  const W a = _mm256_packus_epi32(x[0], x[1]), b = _mm256_packus_epi32(x[2], x[3]);
  *large = Any(M{_mm256_cmpgt_epi16(_mm256_max_epu16(a, b), SetWide(limit - 1))});
  const W add = SetWide(offset);
  return _mm256_permutevar8x32_epi32(
      _mm256_packus_epi16(_mm256_add_epi16(a, add), _mm256_add_epi16(b, add)),
      _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

LANES_INLINE void ShiftBytes(uint8_t* p, uint8_t down, uint8_t up) {
  const __m256i k = LoadInts(p);
  __m256i moved = _mm256_adds_epu8(k, _mm256_set1_epi8(static_cast<char>(up)));
  moved = _mm256_subs_epu8(moved, _mm256_set1_epi8(static_cast<char>(down)));
  moved = _mm256_max_epu8(_mm256_min_epu8(moved, _mm256_set1_epi8(127)),
                          _mm256_set1_epi8(1));
  const __m256i zero = _mm256_cmpeq_epi8(k, _mm256_setzero_si256());
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_andnot_si256(zero, moved));
}

// AVX2 has but one type of integer vector; the names are of AVX-512.
LANES_INLINE M AsFloatMask(M m) { return m; }

#include "kernels/madam_shuffle.inc"
#include "kernels/madam_vector.inc"

}  // namespace

const MadamKernels kMadamAvx2 = {Step, StepCompact, ShiftCompactBytes, Additive};

}  // namespace lns

#endif  // defined(__x86_64__)
