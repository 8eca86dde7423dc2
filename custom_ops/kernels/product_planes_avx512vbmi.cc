// Products of codes of up to 8 bits with AVX-512 VBMI and VNNI: bytes of terms are
// looked up 64 at a time (core/product_planes.h) and summed, four consecutive k at
// once, by the dot product of bytes, whose other factor is the sign.

#if defined(__x86_64__)

#ifdef __GNUC__
// GCC 12 takes the undefined third operand of its own intrinsics for a fault.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstdlib>
#include <cstring>

#include "kernels/product_kernels.h"

namespace lns {
namespace {

#include "kernels/product_lanes_avx512.inc"
#include "kernels/product_finish.inc"

constexpr int64_t kGroup = 4;     // consecutive k in one 32-bit lane
constexpr int64_t kColumns = 16;  // of a panel: lanes of a register
constexpr int64_t kTileRows = 4;
constexpr int64_t kPanelStep = 128;  // bytes of a panel for a group: exponents, signs
constexpr int64_t kRowStep = 8;      // bytes of a row of a for a group: likewise

LANES_INLINE int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// 4 bytes from memory, by the load itself: not by way of a register.
LANES_INLINE __m512i Broadcast(const uint8_t* p) {
  __m512i all;
  asm("vpbroadcastd %1, %0" : "=v"(all) : "m"(*reinterpret_cast<const int32_t(*)>(p)));
  return all;
}

// _mm512_dpbusd_epi32 in place; GCC 12 copies the sum forth and back.
LANES_INLINE void AddDots(__m512i* sum, __m512i bytes, __m512i signs) {
  asm("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(bytes), "v"(signs));
}

// How k is cut into vectors of whole groups; what is missing is filled with zeros.
struct Groups {
  int64_t vector_size, each, full,
      rest;  // groups of a vector, vectors, groups at the end

  LANES_INLINE Groups(const ProductPlan& plan, int64_t k) {
    vector_size = plan.datapath.vector_size < k ? plan.datapath.vector_size : k;
    if (vector_size < 1) vector_size = 1;
    each = Ceil(vector_size, kGroup);
    full = k / vector_size;
    rest = Ceil(k % vector_size, kGroup);
  }
  LANES_INLINE int64_t all() const { return full * each + rest; }

  // Calls work(first k, count, first group) for stretches of k that are contiguous in
  // groups.
  template <typename Work>
  LANES_INLINE void ForEachStretch(int64_t k, const Work& work) const {
    const int64_t length = vector_size % kGroup == 0 ? k : vector_size;
    int64_t group = 0;
    for (int64_t begin = 0; begin < k; begin += length) {
      const int64_t count = k - begin < length ? k - begin : length;
      work(begin, count, group);
      group += Ceil(count, kGroup);
    }
  }
};

LANES_INLINE __mmask64 FirstBytes(int64_t count) {
  return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
}

// Four rows of 64 bytes become 64 groups, 16 to a register.
LANES_INLINE void Interleave(const __m512i* row, __m512i* groups) {
  const __m512i a = _mm512_unpacklo_epi8(row[0], row[1]);
  const __m512i b = _mm512_unpackhi_epi8(row[0], row[1]);
  const __m512i c = _mm512_unpacklo_epi8(row[2], row[3]);
  const __m512i d = _mm512_unpackhi_epi8(row[2], row[3]);
  const __m512i e = _mm512_unpacklo_epi16(a, c), f = _mm512_unpackhi_epi16(a, c);
  const __m512i g = _mm512_unpacklo_epi16(b, d), h = _mm512_unpackhi_epi16(b, d);
  // Each lane of 16 bytes holds groups of another quarter: transpose 4 x 4 lanes.
  const __m512i ef = _mm512_shuffle_i32x4(e, f, 0x88);
  const __m512i gh = _mm512_shuffle_i32x4(g, h, 0x88);
  const __m512i ef_odd = _mm512_shuffle_i32x4(e, f, 0xDD);
  const __m512i gh_odd = _mm512_shuffle_i32x4(g, h, 0xDD);
  groups[0] = _mm512_shuffle_i32x4(ef, gh, 0x88);
  groups[1] = _mm512_shuffle_i32x4(ef_odd, gh_odd, 0x88);
  groups[2] = _mm512_shuffle_i32x4(ef, gh, 0xDD);
  groups[3] = _mm512_shuffle_i32x4(ef_odd, gh_odd, 0xDD);
}

// --- b: panels of 16 columns, in each a step per group ----------------------------

class ColumnPacker {
 public:
  LANES_INLINE explicit ColumnPacker(const BytePlanes& planes)
      : offset_(_mm512_set1_epi8(static_cast<char>(planes.b_offset))) {}

  LANES_INLINE void operator()(__m512i codes, uint8_t* out) {
    const __m512i magnitude = _mm512_abs_epi8(codes);
    largest_ = _mm512_max_epu8(largest_, magnitude);
    const __mmask64 some = _mm512_test_epi8_mask(codes, codes);
    _mm512_storeu_si512(out, _mm512_maskz_add_epi8(some, magnitude, offset_));
    const __m512i one = _mm512_set1_epi8(1);
    _mm512_storeu_si512(out + 64, _mm512_mask_mov_epi8(one, _mm512_movepi8_mask(codes),
                                                       _mm512_set1_epi8(-1)));
  }

  LANES_INLINE bool AllWithin(int max_code) const {
    const __m512i bound = _mm512_set1_epi8(static_cast<char>(max_code));
    return _mm512_cmpgt_epu8_mask(largest_, bound) == 0;
  }

 private:
  __m512i offset_, largest_ = _mm512_setzero_si512();
};

int64_t PackedSize(const ProductPlan& plan, int64_t k, int64_t n) {
  return Ceil(n, kColumns) * Groups(plan, k).all() * kPanelStep;
}

bool Pack(const ProductPlan& plan, const void* b, int64_t row_stride,
          int64_t column_stride, int64_t k, int64_t, int64_t begin, int64_t end,
          void* packed) {
  const Groups groups(plan, k);
  const int64_t panel_bytes = groups.all() * kPanelStep;
  ColumnPacker pack(plan.planes);
  for (int64_t j = begin; j < end; j += kProductPanel) {
    const int64_t columns = end - j < kProductPanel ? end - j : kProductPanel;
    const int8_t* from = static_cast<const int8_t*>(b) + j * column_stride;
    uint8_t* to = static_cast<uint8_t*>(packed) + j / kColumns * panel_bytes;
    groups.ForEachStretch(k, [&](int64_t first, int64_t count, int64_t group) {
      for (int64_t i = 0; i < count; i += kGroup, ++group) {
        const int64_t terms = count - i < kGroup ? count - i : kGroup;
        const int8_t* at = from + (first + i) * row_stride;
        __m512i panels[4];
        if (column_stride == 1) {
          const __mmask64 mask = FirstBytes(columns);
          __m512i rows[kGroup];
          for (int64_t r = 0; r < kGroup; ++r) {
            rows[r] = r < terms ? _mm512_maskz_loadu_epi8(mask, at + r * row_stride)
                                : _mm512_setzero_si512();
          }
          Interleave(rows, panels);
        } else {
          int8_t copy[4 * 64] = {};
          for (int64_t c = 0; c < columns; ++c) {
            const int8_t* column = at + c * column_stride;
            if (row_stride == 1 && terms == kGroup) {
              std::memcpy(copy + c * kGroup, column, kGroup);
            } else {
              for (int64_t r = 0; r < terms; ++r) {
                copy[c * kGroup + r] = column[r * row_stride];
              }
            }
          }
          for (int p = 0; p < 4; ++p) panels[p] = _mm512_loadu_si512(copy + 64 * p);
        }
        uint8_t* step = to + group * kPanelStep;
        for (int64_t p = 0; p * kColumns < columns; ++p) {
          pack(panels[p], step + p * panel_bytes);
        }
      }
    });
  }
  return pack.AllWithin(plan.b.max_code());
}

// --- a: a row after the other, in each a step per group ---------------------------

class RowPacker {
 public:
  LANES_INLINE explicit RowPacker(const BytePlanes& planes)
      : minuend_(_mm512_set1_epi8(static_cast<char>(planes.a_minuend))) {}

  // 16 groups become 16 steps.
  LANES_INLINE void operator()(__m512i codes, __m512i* first, __m512i* second) const {
    const __m512i exponent =
        _mm512_mask_sub_epi8(_mm512_set1_epi8(-1), _mm512_test_epi8_mask(codes, codes),
                             minuend_, _mm512_abs_epi8(codes));
    // 1 ^ 0xFE is -1, and -1 ^ 0xFE is 1.
    const __m512i sign = _mm512_maskz_mov_epi8(
        _mm512_movepi8_mask(codes), _mm512_set1_epi8(static_cast<char>(0xFE)));
    const __m512i low =
        _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    *first = _mm512_permutex2var_epi32(exponent, low, sign);
    *second = _mm512_permutex2var_epi32(exponent, high, sign);
  }

 private:
  __m512i minuend_;
};

// Up to 64 consecutive codes of a row.
LANES_INLINE void PackStretch(const RowPacker& pack, __m512i codes, int64_t count,
                              uint8_t* out) {
  __m512i first, second;
  pack(codes, &first, &second);
  const __mmask16 mask = static_cast<__mmask16>((1u << Ceil(count, kGroup)) - 1u);
  _mm512_mask_storeu_epi64(out, static_cast<__mmask8>(mask), first);
  _mm512_mask_storeu_epi64(out + 64, static_cast<__mmask8>(mask >> 8), second);
}

void PackRow(const RowPacker& pack, const Groups& groups, const int8_t* a,
             int64_t column_stride, int64_t k, uint8_t* out) {
  groups.ForEachStretch(k, [&](int64_t first, int64_t count, int64_t group) {
    for (int64_t i = 0; i < count; i += 64) {
      const int64_t part = count - i < 64 ? count - i : 64;
      const int8_t* at = a + (first + i) * column_stride;
      __m512i codes;
      if (column_stride == 1) {
        codes = _mm512_maskz_loadu_epi8(FirstBytes(part), at);
      } else {
        int8_t copy[64] = {};
        for (int64_t c = 0; c < part; ++c) copy[c] = at[c * column_stride];
        codes = _mm512_loadu_si512(copy);
      }
      PackStretch(pack, codes, part, out + (group + i / kGroup) * kRowStep);
    }
  });
}

// Up to 64 rows that lie next to each other in memory, element by element.
void PackRowsTransposed(const RowPacker& pack, const Groups& groups, const int8_t* a,
                        int64_t column_stride, int64_t rows, int64_t k, uint8_t* out) {
  const int64_t row_bytes = groups.all() * kRowStep;
  const __mmask64 mask = FirstBytes(rows);
  groups.ForEachStretch(k, [&](int64_t first, int64_t count, int64_t group) {
    for (int64_t i = 0; i < count; i += kGroup, ++group) {
      __m512i codes[kGroup], mixed[kGroup];
      for (int64_t r = 0; r < kGroup; ++r) {
        codes[r] = _mm512_setzero_si512();
        if (i + r < count) {
          codes[r] = _mm512_maskz_loadu_epi8(mask, a + (first + i + r) * column_stride);
        }
      }
      Interleave(codes, mixed);
      alignas(64) uint64_t steps[64];
      for (int p = 0; p < 4; ++p) {
        __m512i low, high;
        pack(mixed[p], &low, &high);
        _mm512_store_si512(steps + 16 * p, low);
        _mm512_store_si512(steps + 16 * p + 8, high);
      }
      uint8_t* at = out + group * kRowStep;
      for (int64_t r = 0; r < rows; ++r) std::memcpy(at + r * row_bytes, steps + r, 8);
    }
  });
}

void PackRows(const ProductPlan& plan, const Groups& groups, const ProductBlock& block,
              int64_t begin, int64_t end, uint8_t* out) {
  const RowPacker pack(plan.planes);
  const int64_t row_bytes = groups.all() * kRowStep;
  const int8_t* a = static_cast<const int8_t*>(block.a) + begin * block.row_stride;
  if (block.row_stride == 1 && block.column_stride != 1) {
    for (int64_t i = begin; i < end; i += 64) {
      const int64_t rows = end - i < 64 ? end - i : 64;
      PackRowsTransposed(pack, groups, a + (i - begin), block.column_stride, rows,
                         block.k, out + (i - begin) * row_bytes);
    }
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    PackRow(pack, groups, a + (i - begin) * block.row_stride, block.column_stride,
            block.k, out + (i - begin) * row_bytes);
  }
}

// --- Tiles of kRows rows and one panel ------------------------------------------

template <int kRows, int kTop, int kLow, bool kWide>
class Tile {
 public:
  static constexpr int kTables = kTop + kLow;

  LANES_INLINE Tile(const ProductPlan& plan, const BytePlanes::Bin& bin) {
    for (int t = 0; t < kTables; ++t) {
      // Kernels with more tables than there are have zeros there.
      const bool low = t >= kTop;
      const int at = low ? bin.top + t - kTop : t;
      const bool there = low ? t - kTop < bin.low : t < bin.top;
      half_[t][0] = half_[t][1] = _mm512_setzero_si512();
      shift_[t] = _mm_setzero_si128();
      if (!there) continue;
      half_[t][0] = _mm512_loadu_si512(bin.table[at]);
      half_[t][1] = _mm512_loadu_si512(bin.table[at] + 64);
      shift_[t] = _mm_cvtsi32_si128(bin.shift[at]);
    }
    const BytePlanes& planes = plan.planes;
    between_ =
        _mm512_set1_epi8(static_cast<char>(planes.top_origin - planes.low_origin));
    beyond_ = _mm512_set1_epi8(static_cast<char>(128));
    largest_ = SetInt(static_cast<int32_t>(plan.largest));
    least_ = SetInt(static_cast<int32_t>(-plan.largest));
  }

  LANES_INLINE void Run(const Groups& groups, const uint8_t* a, int64_t row_bytes,
                        const uint8_t* panel, int32_t* sums, int64_t stride) const {
    __m512i acc[kRows];
    for (int r = 0; r < kRows; ++r) acc[r] = _mm512_setzero_si512();
    for (int64_t v = 0; v < groups.full; ++v) {
      Vector(groups.each, a, row_bytes, panel, acc);
      a += groups.each * kRowStep;
      panel += groups.each * kPanelStep;
    }
    if (groups.rest > 0) Vector(groups.rest, a, row_bytes, panel, acc);
    for (int r = 0; r < kRows; ++r) StoreInts(sums + r * stride, acc[r]);
  }

 private:
  LANES_INLINE void Vector(int64_t count, const uint8_t* a, int64_t row_bytes,
                           const uint8_t* panel, __m512i* acc) const {
    __m512i sum[kRows][kTables];
    // The table of the lowest byte sums into the accumulator itself.
    constexpr int kUnit = kLow > 0 ? kTop : 0;
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTables; ++t) sum[r][t] = _mm512_setzero_si512();
      if (!kWide) sum[r][kUnit] = acc[r];
    }
    for (int64_t g = 0; g < count; ++g) {
      const __m512i exponents = _mm512_loadu_si512(panel + g * kPanelStep);
      const __m512i signs = _mm512_loadu_si512(panel + g * kPanelStep + 64);
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* step = a + r * row_bytes + g * kRowStep;
        const __m512i low = _mm512_subs_epu8(exponents, Broadcast(step));
        const __m512i sign = _mm512_xor_si512(signs, Broadcast(step + 4));
        const __m512i top = kLow ? _mm512_max_epu8(low, between_) : low;
        const __m512i bounded = _mm512_min_epu8(low, beyond_);
        for (int t = 0; t < kTables; ++t) {
          const __m512i bytes = _mm512_permutex2var_epi8(
              half_[t][0], t < kTop ? top : bounded, half_[t][1]);
          AddDots(&sum[r][t], bytes, sign);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      __m512i all = sum[r][kUnit];
      for (int t = 0; t < kTables; ++t) {
        if (t != kUnit) all = Add(all, _mm512_sll_epi32(sum[r][t], shift_[t]));
      }
      acc[r] = kWide ? SaturatingAdd(acc[r], all, largest_, least_)
                     : Max(Min(all, largest_), least_);
    }
  }

  __m512i half_[kTables][2];
  __m128i shift_[kTables];
  __m512i between_, beyond_, largest_, least_;
};

// Rows and panels of a block, for one bin after the other.
template <int kTop, int kLow, bool kWide>
LANES_NOINLINE void Panels(const ProductPlan& plan, const BytePlanes::Bin& bin,
                           const Groups& groups, const uint8_t* a, int64_t rows,
                           const uint8_t* panel, int32_t* sums, int64_t stride) {
  const int64_t row_bytes = groups.all() * kRowStep;
  int64_t i = 0;
  if (rows >= kTileRows) {
    const Tile<kTileRows, kTop, kLow, kWide> tile(plan, bin);
    for (; i + kTileRows <= rows; i += kTileRows) {
      tile.Run(groups, a + i * row_bytes, row_bytes, panel, sums + i * stride, stride);
    }
  }
  const Tile<1, kTop, kLow, kWide> tile(plan, bin);
  for (; i < rows; ++i) {
    tile.Run(groups, a + i * row_bytes, row_bytes, panel, sums + i * stride, stride);
  }
}

using PanelsFunction = void (*)(const ProductPlan&, const BytePlanes::Bin&,
                                const Groups&, const uint8_t*, int64_t, const uint8_t*,
                                int32_t*, int64_t);

template <int kTop, bool kWide>
PanelsFunction WithLow(int low) {
  if (low == 0) return Panels<kTop, 0, kWide>;
  if (low == 1) return Panels<kTop, 1, kWide>;
  if (low == 2) return Panels<kTop, 2, kWide>;
  return Panels<kTop, 4, kWide>;
}

template <bool kWide>
PanelsFunction Choose(const BytePlanes::Bin& bin) {
  if (bin.top <= 1) return WithLow<1, kWide>(bin.low);
  if (bin.top == 2) return WithLow<2, kWide>(bin.low);
  if (bin.top == 3) return WithLow<3, kWide>(bin.low);
  return WithLow<4, kWide>(bin.low);
}

bool Can(const ProductPlan& plan, int64_t k) {
  return !plan.planes.bins.empty() && plan.max_sum(k) < int64_t{1} << 31;
}

void Rows(const ProductPlan& plan, const ProductBlock& block) {
  // Rows at a time: so many that they stay in the second cache.
  constexpr int64_t kRowBytes = 256 * 1024;
  const Groups groups(plan, block.k);
  const int64_t row_bytes = groups.all() * kRowStep;
  int64_t at_once = kRowBytes / (row_bytes + 1);
  at_once = at_once < 16 ? 16 : at_once > 256 ? 256 : at_once / 16 * 16;
  if (at_once > block.m) at_once = block.m;
  const bool wide = plan.largest + plan.max_sum(block.k) >= int64_t{1} << 31;
  const int64_t stride = plan.bins * kColumns;
  const int64_t a_bytes = Ceil(at_once * row_bytes, 64) * 64;
  const int64_t sums_bytes =
      Ceil(at_once * stride * static_cast<int64_t>(sizeof(int32_t)), 64) * 64;
  char* scratch = static_cast<char*>(std::aligned_alloc(64, a_bytes + sums_bytes));
  uint8_t* a = reinterpret_cast<uint8_t*>(scratch);
  int32_t* sums = reinterpret_cast<int32_t*>(scratch + a_bytes);
  const Finish finish(plan, block);
  for (int64_t begin = 0; begin < block.m; begin += at_once) {
    const int64_t rows = block.m - begin < at_once ? block.m - begin : at_once;
    PackRows(plan, groups, block, begin, begin + rows, a);
    for (int64_t j = block.begin; j < block.end; j += kColumns) {
      const uint8_t* panel = static_cast<const uint8_t*>(block.packed) +
                             j / kColumns * groups.all() * kPanelStep;
      for (int h = 0; h < plan.bins; ++h) {
        const BytePlanes::Bin& bin = plan.planes.bins[h];
        const PanelsFunction panels = wide ? Choose<true>(bin) : Choose<false>(bin);
        panels(plan, bin, groups, a, rows, panel, sums + h * kColumns, stride);
      }
      const int64_t columns = block.end - j < kColumns ? block.end - j : kColumns;
      for (int64_t i = 0; i < rows; ++i) {
        finish.Row(begin + i, j, columns, sums + i * stride, kColumns);
      }
    }
  }
  std::free(scratch);
}

}  // namespace

const ProductKernels kProductPlanesAvx512Vbmi = {"planes_avx512vbmi", Can, PackedSize,
                                                 Pack, Rows};

}  // namespace lns

#endif  // defined(__x86_64__)
