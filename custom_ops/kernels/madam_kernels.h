// The LNS-Madam step over contiguous elements, one implementation per instruction set.
//
// Knows no TensorFlow. Every implementation equals the plain one bit for bit.

#ifndef TF_LNS_KERNELS_MADAM_KERNELS_H_
#define TF_LNS_KERNELS_MADAM_KERNELS_H_

#include <cstdint>

#include "core/madam.h"

namespace lns {

// `index` is the flat index of the first element in its tensor, the counter of the
// random draws. Each function returns the number of gradient elements that were not
// finite (they count as 0).
struct MadamKernels {
  // Codes int8_t up to 8 bits, int16_t above; v is the float32 second moment.
  int64_t (*step)(const MadamPlan& plan, void* codes, float* v, const float* g,
                  uint64_t index, int64_t n);

  // The same with a one-byte second moment. k is unsigned here and may exceed 127 until
  // shift_compact has run; *largest becomes the largest k.
  int64_t (*step_compact)(const MadamPlan& plan, void* codes, uint8_t* k,
                          const float* g, uint64_t index, int64_t n, int32_t* largest);

  // ShiftCompact on every byte.
  void (*shift_compact)(uint8_t* k, int32_t shift, int64_t n);

  // The float32 step of variables that are no LNS weights.
  int64_t (*additive)(const MadamPlan& plan, float* w, float* v, const float* g,
                      int64_t n);
};

extern const MadamKernels kMadamPlain;
extern const MadamKernels kMadamAvx2;
extern const MadamKernels kMadamAvx512;
extern const MadamKernels kMadamAvx512Vbmi;

}  // namespace lns

#endif  // TF_LNS_KERNELS_MADAM_KERNELS_H_
