#include "kernels/conv_shape.h"

namespace lns {

Status ConvShape::Init(const ConvAttributes& attributes, const TensorShape& x,
                       const TensorShape& kernel) {
  if (x.dims() != 5 || kernel.dims() != 5) {
    return InvalidArgument("x and kernel must have rank 5, got ", x.DebugString(),
                           " and ", kernel.DebugString());
  }
  images = x.dim_size(0);
  channels = x.dim_size(4);
  group_channels = kernel.dim_size(3);
  filters = kernel.dim_size(4);
  groups = attributes.groups;
  if (filters % groups != 0) {
    return InvalidArgument("groups must divide the output channels of kernel, got ",
                           groups, " and ", kernel.DebugString());
  }
  if (channels != group_channels * groups) {
    return InvalidArgument("x must have ", groups,
                           " times the channels of kernel, got ", x.DebugString(),
                           " and ", kernel.DebugString());
  }
  group_filters = filters / groups;
  TF_RETURN_IF_ERROR(output.AddDimWithStatus(images));
  for (int i = 0; i < kSpatialAxes; ++i) {
    if (kernel.dim_size(i) == 0) {
      return InvalidArgument("kernel must have a tap on each axis, got ",
                             kernel.DebugString());
    }
    axes[i] = attributes.Axis(i, x.dim_size(1 + i), kernel.dim_size(i));
    taps *= kernel.dim_size(i);
    TF_RETURN_IF_ERROR(output.AddDimWithStatus(axes[i].outputs()));
  }
  return output.AddDimWithStatus(filters);
}

}  // namespace lns
