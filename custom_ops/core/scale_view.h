// How a scale lies over a tensor: per tensor, per channel, or per vector of consecutive
// elements.

#ifndef TF_LNS_CORE_SCALE_VIEW_H_
#define TF_LNS_CORE_SCALE_VIEW_H_

#include <algorithm>
#include <cstdint>

namespace lns {

// A tensor seen as [outer, channels, inner]. With vector_size = 0 there is one scale
// per channel (channels = 1: per tensor); else one for `vector_size` consecutive
// channels, per outer and inner index.
struct ScaleView {
  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 1;
  int64_t vector_size = 0;

  int64_t elements() const { return outer * channels * inner; }
  int64_t blocks() const { return (channels + vector_size - 1) / vector_size; }
  int64_t scales() const {
    return vector_size == 0 ? channels : outer * blocks() * inner;
  }

  // Cuts the flat range [begin, end) into pieces that lie under one scale,
  //   run(offset, count, scale_index),
  // or under a row of scales, one per element,
  //   lanes(offset, count, first_scale_index).
  template <typename Run, typename Lanes>
  void ForEachPiece(int64_t begin, int64_t end, Run&& run, Lanes&& lanes) const {
    if (vector_size == 0 && channels == 1) {
      if (begin < end) run(begin, end - begin, 0);
      return;
    }
    for (int64_t at = begin; at < end;) {
      const int64_t row = at / inner;  // outer * channels + channel
      const int64_t channel = row % channels;
      int64_t count;
      if (vector_size == 0 && inner == 1) {
        count = std::min(end - at, channels - channel);
        lanes(at, count, channel);
      } else if (vector_size == 0) {
        count = std::min(end - at, inner - at % inner);
        run(at, count, channel);
      } else {
        const int64_t block = row / channels * blocks() + channel / vector_size;
        if (inner == 1) {
          const int64_t stop =
              std::min(channels, (channel / vector_size + 1) * vector_size);
          count = std::min(end - at, stop - channel);
          run(at, count, block);
        } else {
          count = std::min(end - at, inner - at % inner);
          lanes(at, count, block * inner + at % inner);
        }
      }
      at += count;
    }
  }
};

}  // namespace lns

#endif  // TF_LNS_CORE_SCALE_VIEW_H_
