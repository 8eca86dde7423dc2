// Sizes of a convolution, the same for the CPU kernel and the lowering.

#ifndef TF_LNS_KERNELS_CONV_SHAPE_H_
#define TF_LNS_KERNELS_CONV_SHAPE_H_

#include "kernels/op_helpers.h"
#include "ops/conv_attributes.h"

namespace lns {

// Sizes of one convolution.
struct ConvShape {
  WindowAxis axes[kSpatialAxes];
  int64_t images = 0, channels = 0, filters = 0;
  int64_t groups = 1, group_channels = 0, group_filters = 0;
  int64_t taps = 1;  // of a filter
  TensorShape output;

  Status Init(const ConvAttributes& attributes, const TensorShape& x,
              const TensorShape& kernel);

  // Terms of an output.
  int64_t k() const { return taps * group_channels; }
  bool depthwise() const { return groups > 1 && group_channels == 1; }
};

}  // namespace lns

#endif  // TF_LNS_KERNELS_CONV_SHAPE_H_
