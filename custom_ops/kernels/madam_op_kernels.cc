// CPU kernels of the optimizer's ops: check, lock, shard, call kernels/madam_kernels.h.

#include <atomic>
#include <functional>
#include <utility>

#include "kernels/codec_kernels.h"
#include "kernels/dispatch.h"
#include "kernels/madam_kernels.h"
#include "kernels/op_helpers.h"
#include "kernels/resource_helpers.h"

namespace lns {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::mutex_lock;
using VarPtr = tensorflow::core::RefCountPtr<tensorflow::Var>;

// The inputs and attributes that both updates share.
struct StepInputs {
  float learning_rate;
  float weight_decay;
  int64_t step;
};

Status GetStepInputs(OpKernelContext* ctx, int first, StepInputs* inputs) {
  TF_RETURN_IF_ERROR(GetScalar(ctx, first, "learning_rate", &inputs->learning_rate));
  TF_RETURN_IF_ERROR(GetScalar(ctx, first + 1, "weight_decay", &inputs->weight_decay));
  TF_RETURN_IF_ERROR(GetScalar(ctx, first + 2, "step", &inputs->step));
  if (!std::isfinite(inputs->learning_rate)) {
    return InvalidArgument("learning_rate must be finite, got ", inputs->learning_rate);
  }
  if (!std::isfinite(inputs->weight_decay)) {
    return InvalidArgument("weight_decay must be finite, got ", inputs->weight_decay);
  }
  if (inputs->step < 1) {
    return InvalidArgument("step counts from 1, got ", inputs->step);
  }
  return absl::OkStatus();
}

Status CheckShape(const char* name, const TensorShape& shape,
                  const TensorShape& expected) {
  if (shape == expected) return absl::OkStatus();
  return InvalidArgument(name, " must have the weight's shape ", expected.DebugString(),
                         ", got ", shape.DebugString());
}

// Two variables in the order in which to lock them, the same everywhere: in another
// call the two may have changed places.
std::pair<tensorflow::Var*, tensorflow::Var*> InOrder(tensorflow::Var* a,
                                                      tensorflow::Var* b) {
  return std::less<tensorflow::Var*>()(b, a) ? std::make_pair(b, a)
                                             : std::make_pair(a, b);
}

class ApplyMadamOp : public OpKernel {
 public:
  explicit ApplyMadamOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetFormat(ctx, "", &format_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tweight", &weight_type_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tmoment", &moment_type_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("round_gradient", &round_gradient_));
    OP_REQUIRES_OK(ctx, GetMadamAttributes(ctx, &beta_, &g_bound_));
    if (weight_type_ != tensorflow::DT_FLOAT) {
      OP_REQUIRES_OK(ctx, CheckCodeType(format_, weight_type_));
    }
    OP_REQUIRES_OK(ctx, GetRounding(ctx, &rounding_));
    OP_REQUIRES_OK(
        ctx, GetGradientPlan(ctx, &quantize_gradient_, &grad_plan_, &grad_layout_));
    if (moment_type_ == tensorflow::DT_INT8)
      compact_ = std::make_unique<CompactTables>(beta_);
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& grad = ctx->input(4);
    float scale = 0.0f;
    StepInputs inputs;
    int64_t seed = 0;
    int32_t cap = -1, floor = -1;
    OP_REQUIRES_OK(ctx, GetWeightScale(ctx, 1, &scale));
    OP_REQUIRES_OK(ctx, GetStepInputs(ctx, 6, &inputs));
    OP_REQUIRES_OK(ctx, GetScalar(ctx, 9, "seed", &seed));
    OP_REQUIRES_OK(ctx, GetScalar(ctx, 10, "cap", &cap));
    OP_REQUIRES_OK(ctx, GetScalar(ctx, 11, "floor", &floor));
    OP_REQUIRES(
        ctx, cap <= format_.max_exponent(),
        InvalidArgument("cap must be at most ", format_.max_exponent(), ", got ", cap));
    OP_REQUIRES(ctx, floor <= format_.max_exponent(),
                InvalidArgument("floor must be at most ", format_.max_exponent(),
                                ", got ", floor));
    MadamPlan plan =
        MadamPlan::Make(format_, beta_, g_bound_, inputs.learning_rate,
                        inputs.weight_decay, inputs.step, static_cast<uint64_t>(seed),
                        rounding_, round_gradient_, cap, std::max(floor, -1));
    ScaleView view;
    if (quantize_gradient_) {
      OP_REQUIRES_OK(ctx, grad_layout_.View(grad.shape(), &view));
      OP_REQUIRES_OK(ctx, CheckScale(ctx->input(5), grad_layout_, grad.shape()));
    }

    const bool compact = compact_ != nullptr;
    VarPtr weight, moment, exponent;
    OP_REQUIRES_OK(ctx, LookUp(ctx, 0, weight_type_, "weight", &weight));
    OP_REQUIRES_OK(ctx, LookUp(ctx, 2, moment_type_, "second_moment", &moment));
    OP_REQUIRES(ctx, weight.get() != moment.get(),
                InvalidArgument("weight and second_moment must be two variables"));
    if (compact) {
      OP_REQUIRES_OK(
          ctx, LookUp(ctx, 3, tensorflow::DT_INT32, "moment_exponent", &exponent));
    }
    const auto [first, second] = InOrder(weight.get(), moment.get());
    mutex_lock first_lock(*first->mu());
    mutex_lock second_lock(*second->mu());
    OP_REQUIRES_OK(ctx, CheckShape("grad", grad.shape(), weight->tensor()->shape()));
    OP_REQUIRES_OK(ctx, CheckShape("second_moment", moment->tensor()->shape(),
                                   weight->tensor()->shape()));
    OP_REQUIRES_OK(ctx, PrepareToWrite(ctx, weight.get()));
    OP_REQUIRES_OK(ctx, PrepareToWrite(ctx, moment.get()));
    Tensor* nonfinite;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({}), &nonfinite));

    const float* g = grad.flat<float>().data();
    int32_t* tensor_exponent = nullptr;
    std::unique_ptr<mutex_lock> exponent_lock;
    if (compact) {
      plan.compact = compact_.get();
      exponent_lock = std::make_unique<mutex_lock>(*exponent->mu());
      OP_REQUIRES(ctx, exponent->tensor()->dims() == 0,
                  InvalidArgument("moment_exponent must be a scalar"));
      OP_REQUIRES_OK(ctx, PrepareToWrite(ctx, exponent.get()));
      tensor_exponent = &exponent->tensor()->scalar<int32_t>()();
      if (*tensor_exponent == kNoExponent)
        FindExponent(ctx, g, view, grad, tensor_exponent);
      // Still none: no gradient yet, and no byte of v will move.
      const int32_t known = *tensor_exponent == kNoExponent ? 0 : *tensor_exponent;
      plan.exponent =
          std::min(std::max(known, kCompactLowestExponent), kCompactHighestExponent);
    }

    char* weights = static_cast<char*>(weight->tensor()->data());
    char* moments = static_cast<char*>(moment->tensor()->data());
    const int64_t weight_size = tensorflow::DataTypeSize(weight_type_);
    const int64_t moment_size = tensorflow::DataTypeSize(moment_type_);
    const CodecPlan grid(format_);
    // Without temporaries the kernels take a piece as a whole.
    const bool temporaries = quantize_gradient_ || weight_type_ == tensorflow::DT_FLOAT;
    const int64_t chunk_size =
        temporaries ? kChunk : std::max<int64_t>(grad.NumElements(), 1);
    std::atomic<int64_t> bad{0};
    std::atomic<int32_t> largest{0};
    Parallel(ctx, grad.NumElements(), 0.8, [&](int64_t begin, int64_t end) {
      alignas(64) float quantized[kChunk];
      alignas(64) int16_t codes[kChunk];
      int64_t piece_bad = 0;
      int32_t piece_largest = 0;
      for (int64_t at = begin; at < end; at += chunk_size) {
        const int64_t count = std::min(chunk_size, end - at);
        const float* chunk = g + at;
        if (quantize_gradient_) {
          QuantizeChunk(view, g, ctx->input(5).flat<float>().data(), at, count,
                        quantized);
          chunk = quantized;
        }
        void* chunk_codes = weights + at * weight_size;
        if (weight_type_ == tensorflow::DT_FLOAT) {
          Codec().encode(grid, reinterpret_cast<float*>(weights) + at, &scale, 0, at,
                         codes, count);
          chunk_codes = codes;
        }
        char* chunk_moments = moments + at * moment_size;
        if (compact) {
          int32_t top = 0;
          piece_bad += Madam().step_compact(plan, chunk_codes,
                                            reinterpret_cast<uint8_t*>(chunk_moments),
                                            chunk, at, count, &top);
          piece_largest = std::max(piece_largest, top);
        } else {
          piece_bad +=
              Madam().step(plan, chunk_codes, reinterpret_cast<float*>(chunk_moments),
                           chunk, at, count);
        }
        if (weight_type_ == tensorflow::DT_FLOAT) {
          Codec().decode(grid, codes, &scale, 0, reinterpret_cast<float*>(weights) + at,
                         count);
        }
      }
      bad += piece_bad;
      int32_t seen = largest.load();
      while (piece_largest > seen &&
             !largest.compare_exchange_weak(seen, piece_largest)) {
      }
    });
    nonfinite->scalar<int64_t>()() = bad.load();
    if (compact) {
      const int32_t shift = CompactShift(largest.load(), plan.exponent);
      if (shift != 0) {
        *tensor_exponent = plan.exponent + shift;
        Parallel(ctx, grad.NumElements(), 0.1, [&](int64_t begin, int64_t end) {
          Madam().shift_compact(reinterpret_cast<uint8_t*>(moments) + begin, shift,
                                end - begin);
        });
      }
    }
  }

 private:
  static constexpr int64_t kChunk =
      2048;  // what the temporaries of a thread hold, in cache

  void QuantizeChunk(const ScaleView& view, const float* g, const float* scales,
                     int64_t at, int64_t count, float* out) const {
    const auto piece = [&](int64_t from, int64_t n, int64_t first, int stride) {
      Codec().quantize(grad_plan_, g + from, scales + first, stride, from,
                       out + (from - at), n);
    };
    view.ForEachPiece(
        at, at + count,
        [&](int64_t from, int64_t n, int64_t first) { piece(from, n, first, 0); },
        [&](int64_t from, int64_t n, int64_t first) { piece(from, n, first, 1); });
  }

  // The exponent of a one-byte second moment, from the largest element of the first
  // gradient as the step will see it.
  void FindExponent(OpKernelContext* ctx, const float* g, const ScaleView& view,
                    const Tensor& grad, int32_t* exponent) const {
    std::atomic<uint32_t> top{0};
    Parallel(ctx, grad.NumElements(), 0.5, [&](int64_t begin, int64_t end) {
      float quantized[kChunk];
      float largest = 0.0f;
      for (int64_t at = begin; at < end; at += kChunk) {
        const int64_t count = std::min(kChunk, end - at);
        const float* chunk = g + at;
        if (quantize_gradient_) {
          QuantizeChunk(view, g, ctx->input(5).flat<float>().data(), at, count,
                        quantized);
          chunk = quantized;
        }
        largest = std::max(largest, Codec().abs_max(chunk, count));
      }
      const uint32_t bits = Bits(largest);  // orders like the float: it is not negative
      uint32_t seen = top.load();
      while (bits > seen && !top.compare_exchange_weak(seen, bits)) {
      }
    });
    const float largest = std::min(FromBits(top.load()), kLargestGradient);
    if (largest > 0.0f) *exponent = FirstCompactExponent(*compact_, largest);
  }

  Format format_;
  DataType weight_type_;
  DataType moment_type_;
  float beta_;
  float g_bound_;
  Rounding rounding_;
  bool round_gradient_;
  bool quantize_gradient_;
  CodecPlan grad_plan_;
  ScaleLayout grad_layout_;
  std::unique_ptr<CompactTables> compact_;
};

class ApplyMadamAdditiveOp : public OpKernel {
 public:
  explicit ApplyMadamAdditiveOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetMadamAttributes(ctx, &beta_, &g_bound_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& grad = ctx->input(2);
    StepInputs inputs;
    OP_REQUIRES_OK(ctx, GetStepInputs(ctx, 3, &inputs));
    const MadamPlan plan = MadamPlan::Make(
        Format(), beta_, g_bound_, inputs.learning_rate, inputs.weight_decay,
        inputs.step, 0, Rounding::kNearest, false, -1, -1);
    VarPtr weight, moment;
    OP_REQUIRES_OK(ctx, LookUp(ctx, 0, tensorflow::DT_FLOAT, "weight", &weight));
    OP_REQUIRES_OK(ctx, LookUp(ctx, 1, tensorflow::DT_FLOAT, "second_moment", &moment));
    OP_REQUIRES(ctx, weight.get() != moment.get(),
                InvalidArgument("weight and second_moment must be two variables"));
    const auto [first, second] = InOrder(weight.get(), moment.get());
    mutex_lock first_lock(*first->mu());
    mutex_lock second_lock(*second->mu());
    OP_REQUIRES_OK(ctx, CheckShape("grad", grad.shape(), weight->tensor()->shape()));
    OP_REQUIRES_OK(ctx, CheckShape("second_moment", moment->tensor()->shape(),
                                   weight->tensor()->shape()));
    OP_REQUIRES_OK(ctx, PrepareToWrite(ctx, weight.get()));
    OP_REQUIRES_OK(ctx, PrepareToWrite(ctx, moment.get()));
    Tensor* nonfinite;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({}), &nonfinite));
    float* w = weight->tensor()->flat<float>().data();
    float* v = moment->tensor()->flat<float>().data();
    const float* g = grad.flat<float>().data();
    std::atomic<int64_t> bad{0};
    Parallel(ctx, grad.NumElements(), 1.0, [&](int64_t begin, int64_t end) {
      bad += Madam().additive(plan, w + begin, v + begin, g + begin, end - begin);
    });
    nonfinite->scalar<int64_t>()() = bad.load();
  }

 private:
  float beta_;
  float g_bound_;
};

REGISTER_KERNEL_BUILDER(Name("LnsApplyMadam").Device(DEVICE_CPU), ApplyMadamOp);
REGISTER_KERNEL_BUILDER(Name("LnsApplyMadamAdditive").Device(DEVICE_CPU),
                        ApplyMadamAdditiveOp);

}  // namespace
}  // namespace lns
