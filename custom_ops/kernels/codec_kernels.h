// The codec over contiguous elements, one implementation per instruction set.
//
// Knows no TensorFlow. Every implementation equals the plain one bit for bit.

#ifndef TF_LNS_KERNELS_CODEC_KERNELS_H_
#define TF_LNS_KERNELS_CODEC_KERNELS_H_

#include <cstdint>

#include "core/codec.h"

namespace lns {

// Codes are int8_t up to 8 bits and int16_t above; `void*` stands for either.
//
// `scale` points at one scale for the whole run (scale_stride = 0) or at one per
// element (scale_stride = 1). `index` is the flat index of the first element in its
// tensor, the counter of the random draws.
struct CodecKernels {
  void (*quantize)(const CodecPlan& plan, const float* x, const float* scale,
                   int scale_stride, uint64_t index, float* y, int64_t n);

  // Returns the position of the first NaN (whose code is then 0), or -1.
  int64_t (*encode)(const CodecPlan& plan, const float* x, const float* scale,
                    int scale_stride, uint64_t index, void* codes, int64_t n);

  // Returns the position of the first code outside -L..L (whose value is then 0), or
  // -1.
  int64_t (*decode)(const CodecPlan& plan, const void* codes, const float* scale,
                    int scale_stride, float* y, int64_t n);

  // As decode, for the position returned.
  int64_t (*requantize)(const Format& from, const Format& to, const void* codes,
                        void* out, int64_t n);

  // The value in `to` of codes in `from`: requantize and decode in one pass. `scale` is
  // that of `to`. Codes outside the range of `from` read as the nearest end.
  void (*read)(const Format& from, const CodecPlan& to, const void* codes, float scale,
               float* y, int64_t n);

  // Largest magnitude; NaN, Inf and denormals do not take part.
  float (*abs_max)(const float* x, int64_t n);

  // largest[i] = max(largest[i], |x[i]|), the same exceptions.
  void (*abs_max_lanes)(const float* x, float* largest, int64_t n);
};

extern const CodecKernels kCodecPlain;
extern const CodecKernels kCodecAvx2;
extern const CodecKernels kCodecAvx512;

}  // namespace lns

#endif  // TF_LNS_KERNELS_CODEC_KERNELS_H_
