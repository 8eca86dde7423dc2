#include "kernels/patches.h"

#include <cstring>

namespace lns {

Patches::Patches(const WindowAxis axes[kSpatialAxes], int64_t channels,
                 int64_t code_size)
    : channels_(channels), code_size_(code_size) {
  for (int i = 0; i < kSpatialAxes; ++i) {
    const WindowAxis& axis = axes_[i] = axes[i];
    const int64_t outputs = axis.outputs();
    outputs_ *= outputs;
    taps_ *= axis.taps;
    are_input_ = are_input_ && axis.taps == 1 && axis.stride == 1 &&
                 axis.input_dilation == 1 && axis.low == 0 && axis.high == 0;
    meets_[i].reserve(outputs * axis.taps);
    for (int64_t output = 0; output < outputs; ++output) {
      for (int64_t tap = 0; tap < axis.taps; ++tap) {
        meets_[i].push_back(axis.At(output, tap));
      }
    }
  }
  MakeRuns();
}

void Patches::MakeRuns() {
  const WindowAxis& axis = axes_[kSpatialAxes - 1];
  for (int64_t output = 0; output < axis.outputs(); ++output) {
    first_run_.push_back(runs_.size());
    for (int64_t tap = 0; tap < axis.taps; ++tap) {
      const int64_t at = Meets(kSpatialAxes - 1, output, tap);
      if (tap > 0) {
        Run& last = runs_.back();
        if (at < 0 ? last.at < 0 : last.at >= 0 && at == last.at + last.taps) {
          ++last.taps;
          continue;
        }
      }
      runs_.push_back({at, 1});
    }
  }
  first_run_.push_back(runs_.size());
}

void Patches::Copy(const void* x, int64_t begin, int64_t end, int64_t first,
                   int64_t count, void* rows) const {
  const int64_t width = axes_[2].outputs(), height = axes_[1].outputs();
  const int64_t element = channels_ * code_size_, piece = count * code_size_;
  const bool all = count == channels_;
  const char* const start = static_cast<const char*>(x) + first * code_size_;
  char* out = static_cast<char*>(rows);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / outputs_, within = i % outputs_;
    const int64_t column = within % width, line = within / width;
    for (int64_t d = 0; d < axes_[0].taps; ++d) {
      const int64_t depth_at = Meets(0, line / height, d);
      for (int64_t h = 0; h < axes_[1].taps; ++h) {
        const int64_t height_at = Meets(1, line % height, h);
        if (depth_at < 0 || height_at < 0) {
          std::memset(out, 0, axes_[2].taps * piece);
          out += axes_[2].taps * piece;
          continue;
        }
        const int64_t row =
            ((image * axes_[0].size + depth_at) * axes_[1].size + height_at) *
            axes_[2].size;
        for (int64_t r = first_run_[column]; r < first_run_[column + 1]; ++r) {
          const Run& run = runs_[r];
          if (run.at < 0) {
            std::memset(out, 0, run.taps * piece);
            out += run.taps * piece;
          } else if (all) {
            std::memcpy(out, start + (row + run.at) * element, run.taps * piece);
            out += run.taps * piece;
          } else {
            const char* from = start + (row + run.at) * element;
            for (int64_t t = 0; t < run.taps; ++t, from += element, out += piece) {
              std::memcpy(out, from, piece);
            }
          }
        }
      }
    }
  }
}

void Patches::Offsets(int64_t output, int64_t* offsets) const {
  const int64_t width = axes_[2].outputs(), height = axes_[1].outputs();
  const int64_t image = output / outputs_, within = output % outputs_;
  const int64_t column = within % width, line = within / width;
  for (int64_t d = 0; d < axes_[0].taps; ++d) {
    const int64_t depth_at = Meets(0, line / height, d);
    for (int64_t h = 0; h < axes_[1].taps; ++h) {
      const int64_t height_at = Meets(1, line % height, h);
      const int64_t row =
          ((image * axes_[0].size + depth_at) * axes_[1].size + height_at) *
          axes_[2].size;
      for (int64_t w = 0; w < axes_[2].taps; ++w) {
        const int64_t at = Meets(2, column, w);
        *offsets++ =
            depth_at < 0 || height_at < 0 || at < 0 ? -1 : (row + at) * channels_;
      }
    }
  }
}

}  // namespace lns
