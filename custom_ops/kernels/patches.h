// Patches of a convolution's input as rows of a matrix (im2col), a few at a time.

#ifndef TF_LNS_KERNELS_PATCHES_H_
#define TF_LNS_KERNELS_PATCHES_H_

#include <cstdint>
#include <vector>

#include "core/window.h"

namespace lns {

// The input [images, axes..., channels] of codes of `code_size` bytes. Outputs are
// numbered over images and axes.
class Patches {
 public:
  Patches(const WindowAxis axes[kSpatialAxes], int64_t channels, int64_t code_size);

  int64_t outputs() const { return outputs_; }  // of one image
  int64_t taps() const { return taps_; }

  // Whether the patches of all channels are the elements of the input themselves, one
  // after the other.
  bool AreInput() const { return are_input_; }

  // Patches of outputs [begin, end) and of channels [first, first + count), each
  // [taps, count], into `rows`.
  void Copy(const void* x, int64_t begin, int64_t end, int64_t first, int64_t count,
            void* rows) const;

  // Where an output finds the channels of each tap: element offsets into x, -1 for
  // padding.
  void Offsets(int64_t output, int64_t* offsets) const;

 private:
  // Neighbouring taps of the last axis that meet neighbouring elements, or padding.
  struct Run {
    int64_t at;  // element along the last axis, -1 for padding
    int64_t taps;
  };

  void MakeRuns();
  int64_t Meets(int axis, int64_t output, int64_t tap) const {
    return meets_[axis][output * axes_[axis].taps + tap];
  }

  WindowAxis axes_[kSpatialAxes];
  int64_t channels_, code_size_;
  int64_t outputs_ = 1, taps_ = 1;
  bool are_input_ = true;
  std::vector<int64_t> meets_[kSpatialAxes];  // [outputs, taps]
  std::vector<Run> runs_;
  std::vector<int64_t> first_run_;  // by output along the last axis
};

}  // namespace lns

#endif  // TF_LNS_KERNELS_PATCHES_H_
