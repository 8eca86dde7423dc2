#include "xla/product_math.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "xla/hlo/builder/lib/arithmetic.h"
#include "xla/hlo/builder/lib/loops.h"
#include "xla/shape_util.h"

namespace lns::lowering {
namespace {

using ::xla::Select;
using ::xla::XlaBuilder;

// Terms that are written out in the body of a loop, and a vector that is at most.
constexpr int64_t kTermsAtOnce = 16;
constexpr int64_t kWholeVector = 32;

XlaOp AsType(XlaOp x, ::xla::PrimitiveType type) {
  return ::xla::ConvertElementType(x, type);
}

// `count` elements along an axis from a scalar index on.
XlaOp SliceFrom(XlaOp x, XlaOp start, int64_t count, int64_t axis) {
  std::vector<int64_t> sizes = Dimensions(x);
  if (sizes.empty()) return x;  // the builder holds an error
  std::vector<XlaOp> starts(sizes.size(), Scalar(start, 0));
  starts[axis] = start;
  sizes[axis] = count;
  return DynamicSlice(x, starts, sizes);
}

XlaOp ZerosOf(XlaBuilder* builder, ::xla::PrimitiveType type,
              absl::Span<const int64_t> dims) {
  return Broadcast(Zero(builder, type), dims);
}

bool IsEmpty(absl::Span<const int64_t> dims) {
  return std::any_of(dims.begin(), dims.end(), [](int64_t d) { return d == 0; });
}

// Runs body(index, values) `count` times over values of unchanging shapes.
std::vector<XlaOp> Repeat(
    int64_t count, std::vector<XlaOp> values, const char* name,
    const std::function<std::vector<XlaOp>(XlaOp, absl::Span<const XlaOp>)>& body) {
  XlaBuilder* builder = values[0].builder();
  if (count == 1) return body(::xla::ConstantR0<int32_t>(builder, 0), values);
  const auto result = ::xla::ForEachIndex(
      count, ::xla::S32,
      [&](XlaOp index, absl::Span<const XlaOp> now, XlaBuilder*)
          -> absl::StatusOr<std::vector<XlaOp>> { return body(index, now); },
      values, name, builder);
  if (result.ok()) return *result;
  const XlaOp error = builder->ReportError(result.status());
  return std::vector<XlaOp>(values.size(), error);
}

// --- Accumulators -------------------------------------------------------------------

struct Accumulated {
  XlaOp acc;                   // S32 or S64
  XlaOp saturated, truncated;  // PRED, where they are asked for
};

// Runs the accumulators of all outputs, for one bin where there are several.
class Accumulator {
 public:
  // For products of `k` terms; `details` asks for marks of what happened inside.
  Accumulator(const ProductPlan& plan, int64_t k, bool details)
      : plan_(plan), k_(k), details_(details) {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    top_p_ = plan.a.max_exponent() + plan.b.max_exponent();
    const int left = std::max((top_p_ >> g()) + plan.shift, 0);
    top_shift_ = left - plan.shift;
    wide_ = plan.largest + plan.max_sum(k) > kMost;
    for (int64_t n : plan.n) {
      steps_.push_back(n << std::min(left, 32));
      if (steps_.back() > kMost) wide_ = true;
    }
  }

  // `bin` is a scalar S32, looked at where there are several.
  Accumulated Run(const Operand& a, const Operand& b, XlaOp bin) const {
    const int64_t size = std::min(k_, plan_.datapath.vector_size);
    return size <= kWholeVector ? RunShort(a, b, bin, size) : RunLong(a, b, bin, size);
  }

 private:
  // Codes as the terms need them.
  struct Factor {
    XlaOp exponent;  // S32; far below 0 where the code is 0
    XlaOp sign;      // 0 or -1, of the terms' type
  };

  // A vector's exact sum so far, and whether a term lost bits.
  struct Sum {
    XlaOp sum, lost;
  };

  int g() const { return plan_.a.log2_base_factor(); }
  int rest_bits() const { return g() - plan_.datapath.lut_bits; }
  ::xla::PrimitiveType type() const { return wide_ ? ::xla::S64 : ::xla::S32; }

  // So many vectors at once that the body is not too short.
  Accumulated RunShort(const Operand& a, const Operand& b, XlaOp bin,
                       int64_t size) const {
    const int64_t vectors = std::max<int64_t>(1, kTermsAtOnce / size);
    const int64_t terms = vectors * size, count = (k_ + terms - 1) / terms;
    std::vector<XlaOp> values = {Padded(a, count * terms), Padded(b, count * terms),
                                 bin};
    AppendState(a, b, &values);
    const auto body = [&](XlaOp index, absl::Span<const XlaOp> now) {
      const XlaOp start = index * Scalar(index, static_cast<int32_t>(terms));
      const Factor left = FactorOf(plan_.a, now[0], a.axis, start, terms, nullptr);
      const Factor right = FactorOf(plan_.b, now[1], b.axis, start, terms, nullptr);
      Accumulated state = StateIn(now);
      for (int64_t v = 0; v < vectors; ++v) {
        Sum sum{ZeroSum(now), state.truncated};
        for (int64_t i = v * size; i < (v + 1) * size; ++i) {
          Add(TermOf(left, a, i), TermOf(right, b, i), now[2], &sum);
        }
        Clamp(sum, &state);
      }
      std::vector<XlaOp> next = {now[0], now[1], now[2], state.acc};
      if (details_) next.insert(next.end(), {state.saturated, state.truncated});
      return next;
    };
    return StateIn(Repeat(count, values, "vectors", body));
  }

  // A long vector piece by piece; its sum is carried along.
  Accumulated RunLong(const Operand& a, const Operand& b, XlaOp bin,
                      int64_t size) const {
    const int64_t pieces = (size + kTermsAtOnce - 1) / kTermsAtOnce;
    const int64_t vectors = (k_ + size - 1) / size;
    const int64_t end = (vectors - 1) * size + pieces * kTermsAtOnce;
    std::vector<XlaOp> values = {Padded(a, end), Padded(b, end), bin};
    AppendState(a, b, &values);
    values.push_back(ZerosOf(a.codes.builder(), type(), OutputDims(a, b)));
    const auto body = [&](XlaOp index, absl::Span<const XlaOp> now) {
      const auto s32 = [&](int64_t value) {
        return Scalar(index, static_cast<int32_t>(value));
      };
      const XlaOp piece = Rem(index, s32(pieces)) * s32(kTermsAtOnce);
      const XlaOp start = Div(index, s32(pieces)) * s32(size) + piece;
      const XlaOp left_over = s32(size) - piece;  // what follows is the next vector
      const Factor left =
          FactorOf(plan_.a, now[0], a.axis, start, kTermsAtOnce, &left_over);
      const Factor right =
          FactorOf(plan_.b, now[1], b.axis, start, kTermsAtOnce, nullptr);
      Accumulated state = StateIn(now);
      Sum sum{now.back(), state.truncated};
      for (int64_t i = 0; i < kTermsAtOnce; ++i) {
        Add(TermOf(left, a, i), TermOf(right, b, i), now[2], &sum);
      }
      const XlaOp ends = Le(left_over, s32(kTermsAtOnce));
      Accumulated clamped = state;
      Clamp(sum, &clamped);
      std::vector<XlaOp> next = {now[0], now[1], now[2],
                                 Select(ends, clamped.acc, state.acc)};
      if (details_) {
        next.push_back(Select(ends, clamped.saturated, state.saturated));
        next.push_back(clamped.truncated);
      }
      next.push_back(Select(ends, ZeroSum(now), sum.sum));
      return next;
    };
    return StateIn(Repeat(pieces * vectors, values, "pieces", body));
  }

  // State of the loops: both operands, the bin, accumulators, marks, what else there
  // is.
  void AppendState(const Operand& a, const Operand& b,
                   std::vector<XlaOp>* values) const {
    XlaBuilder* builder = a.codes.builder();
    const std::vector<int64_t> dims = OutputDims(a, b);
    values->push_back(ZerosOf(builder, type(), dims));
    if (!details_) return;
    values->insert(values->end(), 2, ZerosOf(builder, ::xla::PRED, dims));
  }

  Accumulated StateIn(absl::Span<const XlaOp> values) const {
    Accumulated state{values[3], {}, {}};
    if (details_) {
      state.saturated = values[4];
      state.truncated = values[5];
    }
    return state;
  }

  XlaOp ZeroSum(absl::Span<const XlaOp> values) const {
    return ::xla::ZerosLike(values[3]);
  }

  static XlaOp Padded(const Operand& operand, int64_t size) {
    const std::vector<int64_t> dims = Dimensions(operand.codes);
    if (dims.empty()) return operand.codes;  // the builder holds an error
    return PadInDim(operand.codes, Scalar(operand.codes, 0), operand.axis, 0,
                    size - dims[operand.axis]);
  }

  // `count` terms of an operand from `start` on; 0 from `left_over` on, if given.
  Factor FactorOf(const Format& format, XlaOp codes, int64_t axis, XlaOp start,
                  int64_t count, const XlaOp* left_over) const {
    XlaOp c = ZeroOutside(format, ToS32(SliceFrom(codes, start, count, axis)));
    if (left_over != nullptr) {
      const XlaOp at = Iota(
          c.builder(), ::xla::ShapeUtil::MakeShape(::xla::S32, Dimensions(c)), axis);
      c = Select(Lt(at, *left_over), c, ::xla::ZerosLike(c));
    }
    // So that a zero code is shifted out of any term, and p is negative.
    const int far = top_p_ + 1 + 64 * format.base_factor;
    const XlaOp exponent =
        Select(Eq(c, Scalar(c, 0)), Scalar(c, -far), Abs(c) - Scalar(c, 1));
    // Made once, not for each output.
    const XlaOp both = ::xla::OptimizationBarrier(
        ::xla::Tuple(c.builder(), {exponent, AsType(c >> Scalar(c, 31), type())}));
    return {GetTupleElement(both, 0), GetTupleElement(both, 1)};
  }

  static Factor TermOf(const Factor& factor, const Operand& operand, int64_t i) {
    const auto at = [&](XlaOp x) {
      return Reshape(SliceInDim(x, i, i + 1, 1, operand.axis), operand.dims);
    };
    return {at(factor.exponent), at(factor.sign)};
  }

  void Add(const Factor& a, const Factor& b, XlaOp bin, Sum* sum) const {
    const XlaOp p = a.exponent + b.exponent;
    const XlaOp r = p & Scalar(p, plan_.a.base_factor - 1);
    XlaOp term = Magnitude(p, r);
    XlaOp mine;
    if (plan_.bins > 1) {
      mine = Eq(r >> Scalar(r, rest_bits()), bin);
      term = Select(mine, term, ::xla::ZerosLike(term));
    }
    const XlaOp sign = a.sign ^ b.sign;
    sum->sum = sum->sum + ((term ^ sign) - sign);
    if (!details_) return;
    std::vector<int32_t> lost = {0};
    lost.insert(lost.end(), plan_.lost.begin(), plan_.lost.end());
    XlaOp lost_bits = Ne(LookUp(lost, FromZero(p)), Scalar(p, 0));
    if (plan_.bins > 1) lost_bits = And(lost_bits, mine);
    sum->lost = Or(sum->lost, lost_bits);
  }

  // An index into a table over p with one more entry in front, for zero codes.
  static XlaOp FromZero(XlaOp p) { return Max(p, Scalar(p, -1)) + Scalar(p, 1); }

  // |term|, where p is the sum of exponents and r its remainder.
  XlaOp Magnitude(XlaOp p, XlaOp r) const {
    XlaOp step;
    if (plan_.a.base_factor <= kSelectTable) {
      step = LookUpSteps(steps_, r);
    } else if (plan_.datapath.bins || 1 << plan_.datapath.lut_bits <= kSelectTable) {
      // n = T[h] (base factor + l), T[h] shifted already.
      std::vector<int64_t> first;
      for (int h = 0; h < 1 << plan_.datapath.lut_bits; ++h) {
        first.push_back(steps_[h << rest_bits()] / plan_.a.base_factor);
        if (plan_.datapath.bins) break;  // all the same
      }
      const XlaOp h = r >> Scalar(r, rest_bits());
      const XlaOp rest = r & Scalar(r, (1 << rest_bits()) - 1);
      const XlaOp line = AsType(rest + Scalar(r, plan_.a.base_factor), type());
      step =
          line * (first.size() == 1 ? Scalar(line, first[0]) : LookUpSteps(first, h));
    } else {
      std::vector<int64_t> terms = {0};
      terms.insert(terms.end(), plan_.term.begin(), plan_.term.end());
      return LookUpSteps(terms, FromZero(p));
    }
    const XlaOp shift = Scalar(p, top_shift_) - (p >> Scalar(p, g()));
    return ShiftRightLogical(step, AsType(shift, type()));
  }

  XlaOp LookUpSteps(const std::vector<int64_t>& table, XlaOp index) const {
    if (wide_) return LookUp(table, index);
    return LookUp(std::vector<int32_t>(table.begin(), table.end()), index);
  }

  void Clamp(const Sum& sum, Accumulated* state) const {
    const XlaOp exact = state->acc + sum.sum;
    state->acc = ::xla::Clamp(Scalar(exact, -plan_.largest), exact,
                              Scalar(exact, plan_.largest));
    if (!details_) return;
    state->saturated = Or(state->saturated, Ne(exact, state->acc));
    state->truncated = sum.lost;
  }

  const ProductPlan& plan_;
  const int64_t k_;
  const bool details_;
  int top_p_, top_shift_;
  bool wide_;  // whether terms and accumulators need 64 bits
  std::vector<int64_t>
      steps_;  // n[r], shifted such that a term is a shift to the right
};

// How many are set, as S64.
XlaOp CountMarks(XlaOp marks) {
  std::vector<int64_t> all(Dimensions(marks).size());
  std::iota(all.begin(), all.end(), 0);
  return Reduce(AsType(marks, ::xla::S64), Zero(marks.builder(), ::xla::S64),
                ::xla::CreateScalarAddComputation(::xla::S64, marks.builder()), all);
}

// What the accumulators stand for before the scales, S32 or S64, and the accumulators.
struct Totals {
  XlaOp total, accumulators, saturated, truncated;
};

Totals TotalsOf(const ProductPlan& plan, const Operand& a, const Operand& b, int64_t k,
                bool details) {
  XlaBuilder* builder = a.codes.builder();
  const Accumulator accumulator(plan, k, details);
  if (!plan.datapath.bins) {
    const Accumulated one = accumulator.Run(a, b, Zero(builder, ::xla::S32));
    Totals totals{one.acc, ToS32(one.acc), {}, {}};
    if (details) {
      totals.saturated = CountMarks(one.saturated);
      totals.truncated = CountMarks(one.truncated);
    }
    return totals;
  }
  // One bin after the other: the memory of one suffices.
  std::vector<int64_t> dims = OutputDims(a, b);
  std::vector<XlaOp> values = {a.codes, b.codes, ZerosOf(builder, ::xla::S64, dims)};
  if (details) {
    values.insert(values.end(), 2, Zero(builder, ::xla::S64));
    std::vector<int64_t> kept = dims;
    kept.push_back(plan.bins);
    values.push_back(ZerosOf(builder, ::xla::S32, kept));
  }
  const int64_t last = dims.size();
  const auto body = [&](XlaOp bin, absl::Span<const XlaOp> now) {
    const Accumulated one =
        accumulator.Run({now[0], a.axis, a.dims}, {now[1], b.axis, b.dims}, bin);
    const XlaOp entry = ::xla::Reshape(
        SliceFrom(::xla::ConstantR1<int64_t>(bin.builder(), plan.entry), bin, 1, 0),
        {});
    std::vector<XlaOp> next = {now[0], now[1],
                               now[2] + AsType(one.acc, ::xla::S64) * entry};
    if (!details) return next;
    std::vector<int64_t> slice = dims;
    slice.push_back(1);
    std::vector<XlaOp> start(last, ::xla::ConstantR0<int32_t>(bin.builder(), 0));
    start.push_back(bin);
    next.push_back(now[3] + CountMarks(one.saturated));
    next.push_back(now[4] + CountMarks(one.truncated));
    next.push_back(DynamicUpdateSlice(now[5], Reshape(ToS32(one.acc), slice), start));
    return next;
  };
  const std::vector<XlaOp> result = Repeat(plan.bins, values, "bins", body);
  if (!details) return {result[2], {}, {}, {}};
  return {result[2], result[5], result[3], result[4]};
}

// --- Values. Float32 numbers are F64 in between: XLA flushes denormals of F32 --------

XlaOp F64Like(XlaOp x, double value) {
  return ::xla::ConstantR0<double>(x.builder(), value);
}

// The float32 nearest to x >= 0, a normal one. The clamp keeps XLA from dropping the
// pair of conversions.
XlaOp ThroughF32(XlaOp x) {
  const XlaOp bits = ToBits(ToF32(x));
  return ToF64(ToFloat(Min(bits, Scalar(bits, kInfBits))));
}

XlaOp BelowNormal(XlaOp x) { return Lt(x, F64Like(x, 0x1p-126)); }

// How often the smallest denormal goes into x, to nearest.
XlaOp InDenormals(XlaOp x) { return RoundNearestEven(x * F64Like(x, 0x1p149)); }

// NearestFloat of x >= 0; NaN stays.
XlaOp NearestMagnitude(XlaOp x) {
  const XlaOp nearest =
      Select(BelowNormal(x), InDenormals(x) * F64Like(x, 0x1p-149), ThroughF32(x));
  return Select(Ne(x, x), x, nearest);
}

XlaOp Nearest(XlaOp x) {
  const XlaOp magnitude = NearestMagnitude(Abs(x));
  return Select(Lt(x, F64Like(x, 0.0)), Neg(magnitude), magnitude);
}

// FloatOf of a magnitude and whether it is negative.
XlaOp FloatOf(XlaOp magnitude, XlaOp negative) {
  const XlaOp bits = Select(BelowNormal(magnitude), ToU32(InDenormals(magnitude)),
                            ToBits(ToF32(magnitude)));
  return ToFloat(bits |
                 Select(negative, Scalar(bits, ~kMagnitudeMask), Scalar(bits, 0u)));
}

// ScaleProduct, F64.
XlaOp ScaleProduct(XlaOp a, XlaOp b) {
  return NearestMagnitude(ToF64(ValidScale(a)) * ToF64(ValidScale(b)));
}

// |ValueOf|, not yet rounded to float32.
XlaOp ValueMagnitude(XlaOp total, int exponent, XlaOp scale) {
  constexpr int kOverflows = 512;  // whatever the total; still far from Inf in F64
  const XlaOp number = ThroughF32(Abs(total));
  const XlaOp shifted =
      number * F64Like(number, std::ldexp(1.0, std::min(exponent, kOverflows)));
  const XlaOp inf = F64Like(number, std::numeric_limits<double>::infinity());
  const XlaOp zero = F64Like(number, 0.0);
  const XlaOp overflows = And(Ge(shifted, F64Like(number, 0x1p128)), Ne(scale, zero));
  const XlaOp value =
      Select(overflows, Broadcast(inf, Dimensions(shifted)), shifted * scale);
  return Select(Eq(total, Scalar(total, 0)), ::xla::ZerosLike(value), value);
}

XlaOp ValueOf(const ProductPlan& plan, XlaOp total, XlaOp scale) {
  return FloatOf(ValueMagnitude(total, plan.value_exponent(), scale),
                 Lt(total, Scalar(total, 0)));
}

// Scales that change along K: one vector after the other.
XlaOp PerVector(const ProductPlan& plan, const Operand& a, const Operand& b, int64_t k,
                const ProductScale& a_scale, const ProductScale& b_scale) {
  const int64_t size = std::min(k, plan.datapath.vector_size);
  const int64_t vectors = (k + size - 1) / size;
  const auto padded = [&](const Operand& operand) {
    const std::vector<int64_t> dims = Dimensions(operand.codes);
    if (dims.empty()) return operand.codes;
    return PadInDim(operand.codes, Scalar(operand.codes, 0), operand.axis, 0,
                    vectors * size - dims[operand.axis]);
  };
  const auto body = [&](XlaOp v, absl::Span<const XlaOp> now) {
    const XlaOp start = v * Scalar(v, static_cast<int32_t>(size));
    const Operand left{SliceFrom(now[0], start, size, a.axis), a.axis, a.dims};
    const Operand right{SliceFrom(now[1], start, size, b.axis), b.axis, b.dims};
    const auto scale_at = [&](XlaOp scale, int64_t axis) {
      return axis < 0 ? scale : SliceFrom(scale, v, 1, axis);
    };
    const XlaOp scale =
        ScaleProduct(scale_at(now[2], a_scale.axis), scale_at(now[3], b_scale.axis));
    const XlaOp total = TotalsOf(plan, left, right, size, false).total;
    const XlaOp magnitude =
        NearestMagnitude(ValueMagnitude(total, plan.value_exponent(), scale));
    const XlaOp value = Select(Lt(total, Scalar(total, 0)), Neg(magnitude), magnitude);
    return std::vector<XlaOp>{now[0], now[1], now[2], now[3], Nearest(now[4] + value)};
  };
  const std::vector<XlaOp> values = {
      padded(a), padded(b), a_scale.scale, b_scale.scale,
      ZerosOf(a.codes.builder(), ::xla::F64, OutputDims(a, b))};
  const XlaOp total = Repeat(vectors, values, "scaled_vectors", body)[4];
  return FloatOf(Abs(total), Lt(total, F64Like(total, 0.0)));
}

}  // namespace

std::vector<int64_t> OutputDims(const Operand& a, const Operand& b) {
  std::vector<int64_t> dims = a.dims;
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == 1) dims[i] = b.dims[i];
  }
  return dims;
}

XlaOp Product(const ProductPlan& plan, const Operand& a, const Operand& b, int64_t k,
              const ProductScale& a_scale, const ProductScale& b_scale) {
  const std::vector<int64_t> dims = OutputDims(a, b);
  if (k == 0 || IsEmpty(dims)) return ZerosOf(a.codes.builder(), ::xla::F32, dims);
  if (a_scale.axis >= 0 || b_scale.axis >= 0) {
    return PerVector(plan, a, b, k, a_scale, b_scale);
  }
  return ValueOf(plan, TotalsOf(plan, a, b, k, false).total,
                 ScaleProduct(a_scale.scale, b_scale.scale));
}

ProductWithDetails ProductDetails(const ProductPlan& plan, const Operand& a,
                                  const Operand& b, int64_t k,
                                  const ProductScale& a_scale,
                                  const ProductScale& b_scale) {
  XlaBuilder* builder = a.codes.builder();
  const std::vector<int64_t> dims = OutputDims(a, b);
  if (k == 0 || IsEmpty(dims)) {
    std::vector<int64_t> all = dims;
    if (plan.datapath.bins) all.push_back(plan.bins);
    const XlaOp zero = Zero(builder, ::xla::S64);
    return {ZerosOf(builder, ::xla::F32, dims), ZerosOf(builder, ::xla::S32, all), zero,
            zero};
  }
  const Totals totals = TotalsOf(plan, a, b, k, true);
  return {ValueOf(plan, totals.total, ScaleProduct(a_scale.scale, b_scale.scale)),
          totals.accumulators, totals.saturated, totals.truncated};
}

}  // namespace lns::lowering
