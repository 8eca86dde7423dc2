#include "xla/product_math.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "xla/hlo/builder/lib/arithmetic.h"
#include "xla/hlo/builder/lib/loops.h"
#include "xla/hlo/builder/lib/math.h"

namespace lns::lowering {
namespace {

using ::xla::PrimitiveType;
using ::xla::Select;

// What one pair of codes adds, elements of any common shape.
struct Terms {
  XlaOp term;  // with its sign, of the plan's type
  XlaOp bin;   // S32
  XlaOp lost;  // whether bits were dropped
};

int64_t Longest(const ProductPlan& plan, int64_t k) {
  return std::max<int64_t>(1, std::min(plan.datapath.vector_size, k));
}

// S32 where neither a term on its way nor a vector's sum can leave it.
PrimitiveType TypeOf(const ProductPlan& plan, int64_t k) {
  const int64_t entry = *std::max_element(plan.entry.begin(), plan.entry.end());
  const int64_t n = 2 * plan.a.base_factor * (plan.datapath.bins ? 1 : entry);
  const int64_t term = *std::max_element(plan.term.begin(), plan.term.end());
  const int64_t limit = std::numeric_limits<int32_t>::max();
  const bool fits = n <= limit && term * Longest(plan, k) + plan.largest <= limit;
  return fits ? ::xla::S32 : ::xla::S64;
}

Terms TermsOf(const ProductPlan& plan, PrimitiveType type, XlaOp a, XlaOp b) {
  const int g = plan.a.log2_base_factor(), m = plan.datapath.lut_bits;
  const XlaOp p = Max(Abs(a) + Abs(b) - Scalar(a, 2), Scalar(a, 0));
  const XlaOp q = ShiftRightLogical(p, Scalar(p, g));
  const XlaOp r = p & Scalar(p, plan.a.base_factor - 1);
  const XlaOp h = ShiftRightLogical(r, Scalar(r, g - m));
  const XlaOp rest = r & Scalar(r, (1 << (g - m)) - 1);
  XlaOp n = ConvertElementType(rest + Scalar(rest, plan.a.base_factor), type);
  int unit = plan.lsb + g;
  if (!plan.datapath.bins) {
    const std::vector<int32_t> entries(plan.entry.begin(), plan.entry.end());
    n = n * ConvertElementType(LookUp(absl::Span<const int32_t>(entries), h), type);
    unit += plan.datapath.fraction_bits;
  }
  const XlaOp shift = q - Scalar(q, unit);
  const int widest = type == ::xla::S32 ? 31 : 62;
  const XlaOp left = ConvertElementType(Max(shift, Scalar(shift, 0)), type);
  const XlaOp right = ConvertElementType(
      Min(Max(Neg(shift), Scalar(shift, 0)), Scalar(shift, widest)), type);
  const XlaOp whole = ShiftLeft(n, left);
  const XlaOp magnitude = ShiftRightLogical(whole, right);
  const XlaOp is_zero = Or(Eq(a, Scalar(a, 0)), Eq(b, Scalar(b, 0)));
  const XlaOp signed_term = Select(Lt(a ^ b, Scalar(a, 0)), Neg(magnitude), magnitude);
  const XlaOp lost = Ne(ShiftLeft(magnitude, right), whole);
  return {Select(is_zero, ZerosLike(signed_term), signed_term), h,
          And(lost, Not(is_zero))};
}

XlaOp SumOver(XlaOp x, int64_t axis, PrimitiveType type) {
  return Reduce(x, ::xla::Zero(x.builder(), type),
                ::xla::CreateScalarAddComputation(type, x.builder()), {axis});
}

// 1 where a is the bin of the last axis that is added here.
XlaOp InBin(XlaOp bin, int bins) {
  std::vector<int64_t> dims = Dimensions(bin);
  dims.push_back(bins);
  std::vector<int64_t> places(dims.size() - 1);
  for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int64_t>(i);
  const ::xla::Shape shape = ::xla::ShapeUtil::MakeShape(::xla::S32, dims);
  return Eq(BroadcastInDim(bin, dims, places),
            Iota(bin.builder(), shape, static_cast<int64_t>(dims.size()) - 1));
}

XlaOp Spread(XlaOp x, int bins) {  // the same for each bin of a new last axis
  std::vector<int64_t> dims = Dimensions(x);
  std::vector<int64_t> places(dims.size());
  for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int64_t>(i);
  dims.push_back(bins);
  return BroadcastInDim(x, dims, places);
}

// NearestFloat: the float32 nearest to x >= 0 as F64, a denormal too.
XlaOp NearestFloatOf(XlaOp x) {
  const XlaOp small = RoundToEven(x * Scalar(x, 0x1p149)) * Scalar(x, 0x1p-149);
  // On the bits, for there is no pair of conversions here that XLA could take out.
  const XlaOp bits = BitcastConvertType(x, ::xla::U64);
  const XlaOp odd = ShiftRightLogical(bits, Scalar(bits, 29)) & Scalar(bits, 1);
  const XlaOp rounded = (bits + Scalar(bits, (1 << 28) - 1) + odd) &
                        Scalar(bits, ~((uint64_t{1} << 29) - 1));
  return Select(Ge(x, Scalar(x, 0x1p-126)), BitcastConvertType(rounded, ::xla::F64),
                small);
}

// ScaleProduct, in F64.
XlaOp ScaleProductOf(XlaOp a, XlaOp b) {
  const XlaOp product = ToF64(a) * ToF64(b);
  return Select(Ge(product, Scalar(product, 0x1p128 - 0x1p103)),
                FullLike(product, std::numeric_limits<double>::infinity()),
                NearestFloatOf(product));
}

// ValueOf; `total` is an integer, `scale` a ScaleProduct of its shape.
XlaOp ValueFrom(XlaOp total, int exponent, XlaOp scale) {
  const XlaOp magnitude =
      NearestFloatOf(ToF64(Abs(total))) * Scalar(scale, std::ldexp(1.0, exponent));
  const XlaOp infinity = FullLike(scale, std::numeric_limits<double>::infinity());
  const XlaOp overflows =
      And(Ge(magnitude, Scalar(magnitude, 0x1p128)), Ne(scale, Scalar(scale, 0.0)));
  const XlaOp value = Select(overflows, infinity, magnitude * scale);
  const XlaOp small =
      RoundToEven(Min(value, Scalar(value, 0x1p-126)) * Scalar(value, 0x1p149));
  const XlaOp bits =
      Select(Ge(value, Scalar(value, 0x1p-126)), ToBits(ToF32(value)), ToU32(small));
  const XlaOp sign =
      Select(Lt(total, ZerosLike(total)), FullLike(bits, 0x80000000u), ZerosLike(bits));
  return ToFloat(Select(Eq(total, ZerosLike(total)), ZerosLike(bits), bits | sign));
}

}  // namespace

ProductResult Matmul(const ProductPlan& plan, XlaOp a, XlaOp b, XlaOp a_scale,
                     XlaOp b_scale, bool with_counts) {
  ::xla::XlaBuilder* builder = a.builder();
  const int64_t batch = Dimensions(a)[0], m = Dimensions(a)[1], k = Dimensions(a)[2];
  const int64_t n = Dimensions(b)[2], size = Longest(plan, k);
  const int64_t vectors = (k + size - 1) / size;
  const int bins = plan.bins;
  const PrimitiveType type = TypeOf(plan, k);
  const bool per_vector = Dimensions(a_scale)[2] > 1 || Dimensions(b_scale)[1] > 1;

  // Zeros at the end add nothing. K comes second, so that rows of b are read in order.
  a = PadInDim(Transpose(a, {0, 2, 1}), Scalar(a, 0), 1, 0, vectors * size - k);
  b = PadInDim(b, Scalar(b, 0), 1, 0, vectors * size - k);
  const std::vector<int64_t> shape = {batch, m, n, bins};
  const XlaOp nothing = Broadcast(::xla::Zero(builder, type), shape);
  const XlaOp none = Broadcast(::xla::ConstantR0<bool>(builder, false), shape);

  const auto values_of = [&](XlaOp acc, XlaOp a_factor, XlaOp b_factor) {
    XlaOp total = ConvertElementType(acc, ::xla::S64);
    if (plan.datapath.bins) {
      const std::vector<int64_t> entries(plan.entry.begin(), plan.entry.end());
      total = Mul(total, ::xla::ConstantR1<int64_t>(acc.builder(), entries), {3});
    }
    total = SumOver(total, 3, ::xla::S64);
    const auto spread = [&](XlaOp scale) {
      return BroadcastInDim(scale, {batch, m, n}, {0, 1, 2});
    };
    return ValueFrom(total, plan.value_exponent(),
                     ScaleProductOf(spread(a_factor), spread(b_factor)));
  };

  const auto body =
      [&](XlaOp i, absl::Span<const XlaOp> state,
          ::xla::XlaBuilder* inner) -> absl::StatusOr<std::vector<XlaOp>> {
    const XlaOp zero = ::xla::ConstantR0<int32_t>(inner, 0);
    const XlaOp at = i * ::xla::ConstantR0<int32_t>(inner, static_cast<int32_t>(size));
    const std::vector<int64_t> all = {batch, size, m, n};
    const XlaOp left = BroadcastInDim(
        DynamicSlice(state[0], {zero, at, zero}, {batch, size, m}), all, {0, 1, 2});
    const XlaOp right = BroadcastInDim(
        DynamicSlice(state[1], {zero, at, zero}, {batch, size, n}), all, {0, 1, 3});
    const Terms terms = TermsOf(plan, type, left, right);
    XlaOp term = Spread(terms.term, bins), lost = Spread(terms.lost, bins);
    if (bins > 1) {
      const XlaOp here = InBin(terms.bin, bins);
      term = Select(here, term, ZerosLike(term));
      lost = And(here, lost);
    }
    const XlaOp exact = state[2] + SumOver(term, 1, type);
    XlaOp acc = Clamp(Scalar(exact, -plan.largest), exact, Scalar(exact, plan.largest));
    std::vector<XlaOp> next(state.begin(), state.end());
    if (with_counts) {
      next[4] = Or(state[4], Ne(acc, exact));
      next[5] =
          Or(state[5], Reduce(lost, ::xla::ConstantR0<bool>(inner, false),
                              CreateScalarOrComputation(::xla::PRED, inner), {1}));
    }
    if (per_vector) {
      const auto scale_at = [&](XlaOp scale, int axis) {
        std::vector<int64_t> sizes = Dimensions(scale);
        if (sizes[axis] == 1) return scale;
        sizes[axis] = 1;
        std::vector<XlaOp> start(3, zero);
        start[axis] = i;
        return DynamicSlice(scale, start, sizes);
      };
      next[3] = state[3] + values_of(acc, scale_at(state[6], 2), scale_at(state[7], 1));
      acc = ZerosLike(acc);
    }
    next[2] = acc;
    return next;
  };

  const XlaOp no_values =
      Broadcast(::xla::ConstantR0<float>(builder, 0.0f), {batch, m, n});
  std::vector<XlaOp> state = {a, b, nothing, no_values, none, none, a_scale, b_scale};
  if (vectors > 0) {
    const auto done =
        ForEachIndex(vectors, ::xla::S32, body, state, "vectors", builder);
    if (!done.ok()) {
      builder->ReportError(done.status());
      return {};
    }
    state = *done;
  }
  ProductResult result;
  result.values = per_vector ? state[3] : values_of(state[2], a_scale, b_scale);
  result.accumulators = ToS32(state[2]);
  if (with_counts) {
    const auto count = [&](XlaOp marks) {
      const XlaOp ones = ConvertElementType(marks, ::xla::S64);
      return Reduce(ones, ::xla::Zero(builder, ::xla::S64),
                    CreateScalarAddComputation(::xla::S64, builder), {0, 1, 2, 3});
    };
    result.saturated = count(state[4]);
    result.truncated = count(state[5]);
  }
  return result;
}

}  // namespace lns::lowering
