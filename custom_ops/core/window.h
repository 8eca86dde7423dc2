// Where the windows of a convolution lie; names agree with tf_lns/reference/window.py.

#ifndef TF_LNS_CORE_WINDOW_H_
#define TF_LNS_CORE_WINDOW_H_

#include <algorithm>
#include <cstdint>

#include "core/format.h"

namespace lns {

constexpr int kSpatialAxes = 3;
constexpr int64_t kMaxWindowStep = (int64_t{1} << 31) - 1;

// One spatial axis. `size` elements of the input lie `input_dilation` apart, and `low`
// and `high` positions are added around them, or cut off where negative.
struct WindowAxis {
  int64_t size = 1, taps = 1;
  int64_t stride = 1, dilation = 1, input_dilation = 1;
  int64_t low = 0, high = 0;

  LNS_INLINE int64_t dilated() const {
    return size == 0 ? 0 : (size - 1) * input_dilation + 1;
  }

  // Outputs; none where the filter does not fit.
  LNS_INLINE int64_t outputs() const {
    const int64_t room = dilated() + low + high - ((taps - 1) * dilation + 1);
    return room < 0 ? 0 : room / stride + 1;
  }

  // Pads such that there are ceil(dilated / stride) outputs, the smaller half first.
  LNS_INLINE void PadSame() {
    const int64_t wanted = (dilated() + stride - 1) / stride;
    const int64_t reach = (wanted - 1) * stride + (taps - 1) * dilation + 1;
    const int64_t total = std::max<int64_t>(0, reach - dilated());
    low = total / 2;
    high = total - low;
  }

  // The element of the input that a tap of an output meets, -1 for padding.
  LNS_INLINE int64_t At(int64_t output, int64_t tap) const {
    const int64_t at = output * stride + tap * dilation - low;
    if (at < 0 || at >= dilated() || at % input_dilation != 0) return -1;
    return at / input_dilation;
  }
};

}  // namespace lns

#endif  // TF_LNS_CORE_WINDOW_H_
