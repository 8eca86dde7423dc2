// The attributes of a convolution, the same for signatures, kernels and lowerings.

#ifndef TF_LNS_OPS_CONV_ATTRIBUTES_H_
#define TF_LNS_OPS_CONV_ATTRIBUTES_H_

#include <string>
#include <vector>

#include "core/window.h"
#include "ops/status.h"
#include "tensorflow/core/platform/errors.h"

namespace lns {

struct ConvAttributes {
  std::vector<int64_t> strides, dilations, input_dilations;
  std::string padding;                     // "VALID", "SAME" or "EXPLICIT"
  std::vector<int64_t> explicit_paddings;  // low, high of each axis
  int64_t groups = 1;

  // From any context that has attributes.
  template <typename Context>
  Status Init(Context* ctx) {
    TF_RETURN_IF_ERROR(ctx->GetAttr("strides", &strides));
    TF_RETURN_IF_ERROR(ctx->GetAttr("dilations", &dilations));
    TF_RETURN_IF_ERROR(ctx->GetAttr("input_dilations", &input_dilations));
    TF_RETURN_IF_ERROR(ctx->GetAttr("padding", &padding));
    TF_RETURN_IF_ERROR(ctx->GetAttr("explicit_paddings", &explicit_paddings));
    TF_RETURN_IF_ERROR(ctx->GetAttr("groups", &groups));
    return Check();
  }

  // One axis of a convolution of these sizes.
  WindowAxis Axis(int i, int64_t size, int64_t taps) const {
    WindowAxis axis;
    axis.size = size;
    axis.taps = taps;
    axis.stride = strides[i];
    axis.dilation = dilations[i];
    axis.input_dilation = input_dilations[i];
    if (padding == "SAME") axis.PadSame();
    if (padding == "EXPLICIT") {
      axis.low = explicit_paddings[2 * i];
      axis.high = explicit_paddings[2 * i + 1];
    }
    return axis;
  }

 private:
  Status Check() const {
    const struct {
      const char* name;
      const std::vector<int64_t>& values;
    } steps[] = {{"strides", strides},
                 {"dilations", dilations},
                 {"input_dilations", input_dilations}};
    for (const auto& list : steps) {
      bool good = list.values.size() == kSpatialAxes;
      for (int64_t v : list.values) good = good && v >= 1 && v <= kMaxWindowStep;
      if (!good) {
        return InvalidArgument(list.name, " must be ", kSpatialAxes,
                               " numbers from 1 to 2^31 - 1");
      }
    }
    const size_t wanted = padding == "EXPLICIT" ? 2 * kSpatialAxes : 0;
    bool good = explicit_paddings.size() == wanted;
    for (int64_t v : explicit_paddings) {
      good = good && v >= -kMaxWindowStep && v <= kMaxWindowStep;
    }
    if (!good) {
      return InvalidArgument("explicit_paddings must be ", wanted,
                             " numbers below 2^31 in magnitude with padding ", padding);
    }
    if (groups < 1) return InvalidArgument("groups must be positive, got ", groups);
    return absl::OkStatus();
  }
};

}  // namespace lns

#endif  // TF_LNS_OPS_CONV_ATTRIBUTES_H_
