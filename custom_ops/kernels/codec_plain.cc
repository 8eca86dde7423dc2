// The codec element by element: the fallback for any CPU, and what the tests hold the
// vectorised kernels against.

#include "kernels/codec_kernels.h"

namespace lns {
namespace {

int32_t LoadCode(const Format& format, const void* codes, int64_t i) {
  return format.bits <= 8 ? static_cast<const int8_t*>(codes)[i]
                          : static_cast<const int16_t*>(codes)[i];
}

void StoreCode(const Format& format, int32_t code, void* codes, int64_t i) {
  if (format.bits <= 8) {
    static_cast<int8_t*>(codes)[i] = static_cast<int8_t>(code);
  } else {
    static_cast<int16_t*>(codes)[i] = static_cast<int16_t>(code);
  }
}

bool InRange(const Format& format, int32_t code) {
  return -format.max_code() <= code && code <= format.max_code();
}

void Quantize(const CodecPlan& plan, const float* x, const float* scale,
              int scale_stride, uint64_t index, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    y[i] = QuantizeOne(plan, x[i], scale[i * scale_stride], index + i);
  }
}

int64_t Encode(const CodecPlan& plan, const float* x, const float* scale,
               int scale_stride, uint64_t index, void* codes, int64_t n) {
  int64_t bad = -1;
  for (int64_t i = 0; i < n; ++i) {
    const bool nan = IsNan(x[i]);
    if (nan && bad < 0) bad = i;
    const int32_t code =
        nan ? 0 : EncodeOne(plan, x[i], scale[i * scale_stride], index + i);
    StoreCode(plan.format, code, codes, i);
  }
  return bad;
}

int64_t Decode(const CodecPlan& plan, const void* codes, const float* scale,
               int scale_stride, float* y, int64_t n) {
  int64_t bad = -1;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t code = LoadCode(plan.format, codes, i);
    const bool in_range = InRange(plan.format, code);
    if (!in_range && bad < 0) bad = i;
    y[i] = in_range
               ? DecodeOne(plan.format, *plan.tables, code, scale[i * scale_stride])
               : 0.0f;
  }
  return bad;
}

int64_t Requantize(const Format& from, const Format& to, const void* codes, void* out,
                   int64_t n) {
  int64_t bad = -1;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t code = LoadCode(from, codes, i);
    const bool in_range = InRange(from, code);
    if (!in_range && bad < 0) bad = i;
    StoreCode(to, in_range ? RequantizeOne(from, to, code) : 0, out, i);
  }
  return bad;
}

void Read(const Format& from, const CodecPlan& to, const void* codes, float scale,
          float* y, int64_t n) {
  const int32_t limit = from.max_code();
  for (int64_t i = 0; i < n; ++i) {
    const int32_t code = std::min(std::max(LoadCode(from, codes, i), -limit), limit);
    y[i] =
        DecodeOne(to.format, *to.tables, RequantizeOne(from, to.format, code), scale);
  }
}

float AbsMax(const float* x, int64_t n) {
  float largest = 0.0f;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, AbsMaxTerm(x[i]));
  return largest;
}

void AbsMaxLanes(const float* x, float* largest, int64_t n) {
  for (int64_t i = 0; i < n; ++i) largest[i] = std::max(largest[i], AbsMaxTerm(x[i]));
}

}  // namespace

const CodecKernels kCodecPlain = {Quantize, Encode, Decode,     Requantize,
                                  Read,     AbsMax, AbsMaxLanes};

}  // namespace lns
