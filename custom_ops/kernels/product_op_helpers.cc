#include "kernels/product_op_helpers.h"

#include <cstring>

#include "kernels/dispatch.h"
#include "kernels/product_kernels.h"
#include "tensorflow/core/util/matmul_bcast.h"

namespace lns {

Status GetProductPlan(OpKernelConstruction* ctx, ProductPlan* plan) {
  Format a, b;
  Datapath datapath;
  std::string conversion;
  TF_RETURN_IF_ERROR(ctx->GetAttr("a_bits", &a.bits));
  TF_RETURN_IF_ERROR(ctx->GetAttr("b_bits", &b.bits));
  TF_RETURN_IF_ERROR(ctx->GetAttr("base_factor", &a.base_factor));
  b.base_factor = a.base_factor;
  TF_RETURN_IF_ERROR(ctx->GetAttr("lut_bits", &datapath.lut_bits));
  TF_RETURN_IF_ERROR(ctx->GetAttr("accumulator_bits", &datapath.accumulator_bits));
  TF_RETURN_IF_ERROR(ctx->GetAttr("headroom_bits", &datapath.headroom_bits));
  TF_RETURN_IF_ERROR(ctx->GetAttr("fraction_bits", &datapath.fraction_bits));
  TF_RETURN_IF_ERROR(ctx->GetAttr("vector_size", &datapath.vector_size));
  TF_RETURN_IF_ERROR(ctx->GetAttr("conversion", &conversion));
  datapath.bins = conversion == "bins";
  for (const std::string& error :
       {a.Error(), b.Error(), datapath.Error(a.base_factor)}) {
    if (!error.empty()) return InvalidArgument(error);
  }
  *plan = ProductPlan(a, b, datapath);
  return absl::OkStatus();
}

Status MatmulShape::Init(const ProductPlan& plan, const TensorShape& a_shape,
                         const TensorShape& b_shape, bool transpose_first,
                         bool transpose_second) {
  a = a_shape;
  b = b_shape;
  transpose_a = transpose_first;
  transpose_b = transpose_second;
  if (a.dims() < 2 || b.dims() < 2) {
    return InvalidArgument("a and b must have rank 2 or more, got shapes ",
                           a.DebugString(), " and ", b.DebugString());
  }
  m = a.dim_size(a.dims() - (transpose_a ? 1 : 2));
  k = a.dim_size(a.dims() - (transpose_a ? 2 : 1));
  n = b.dim_size(b.dims() - (transpose_b ? 2 : 1));
  const int64_t b_k = b.dim_size(b.dims() - (transpose_b ? 1 : 2));
  const tensorflow::MatMulBCast bcast(a.dim_sizes(), b.dim_sizes());
  if (k != b_k || !bcast.IsValid()) {
    return InvalidArgument("a and b do not fit: a of [..., M, K] = ", a.DebugString(),
                           transpose_a ? " transposed" : "",
                           ", b of [..., K, N] = ", b.DebugString(),
                           transpose_b ? " transposed" : "");
  }
  lead = bcast.output_batch_shape();
  output = lead;
  output.AddDim(m);
  output.AddDim(n);
  const int64_t size = plan.datapath.vector_size;
  vectors = std::max<int64_t>(1, (k + size - 1) / size);
  return absl::OkStatus();
}

namespace {

TensorShape FullScale(const TensorShape& lead, int64_t rows, int64_t columns) {
  TensorShape full = lead;
  full.AddDim(rows);
  full.AddDim(columns);
  return full;
}

}  // namespace

Status CheckScaleShape(const TensorShape& scale, const char* name,
                       const TensorShape& lead, int64_t rows, int64_t columns) {
  const TensorShape full = FullScale(lead, rows, columns);
  const int missing = full.dims() - scale.dims();
  bool fits = missing >= 0 && scale.dims() != 1;
  for (int i = 0; fits && i < scale.dims(); ++i) {
    const int64_t size = scale.dim_size(i);
    fits = size == 1 || size == full.dim_size(missing + i);
  }
  if (fits) return absl::OkStatus();
  return InvalidArgument(
      name, " must be a scalar or have 1 or the full size on each axis of ",
      full.DebugString(), ", got ", scale.DebugString());
}

Status ScaleGrid::Init(const Tensor& scale, const char* name, const TensorShape& lead,
                       int64_t rows, int64_t columns) {
  const TensorShape& shape = scale.shape();
  TF_RETURN_IF_ERROR(CheckScaleShape(shape, name, lead, rows, columns));
  const int rank = lead.dims() + 2;
  std::vector<int64_t> strides(rank, 0);
  int64_t stride = 1;
  for (int i = shape.dims() - 1; i >= 0; --i) {
    const int64_t size = shape.dim_size(i);
    strides[rank - shape.dims() + i] = size == 1 ? 0 : stride;
    stride *= size;
  }
  values_ = scale.flat<float>().data();
  for (int64_t i = 0; i < scale.NumElements(); ++i) {
    if (!IsValidScale(values_[i])) {
      return InvalidArgument(name, " must be finite and at least 2^-126, got ",
                             values_[i], " at flat index ", i);
    }
  }
  column_stride_ = strides.back();
  row_stride_ = strides[strides.size() - 2];
  lead_strides_.assign(strides.begin(), strides.end() - 2);
  lead_sizes_.clear();
  for (int i = 0; i < lead.dims(); ++i) lead_sizes_.push_back(lead.dim_size(i));
  return absl::OkStatus();
}

int64_t ScaleGrid::Offset(int64_t batch) const {
  int64_t offset = 0;
  for (int i = static_cast<int>(lead_sizes_.size()) - 1; i >= 0; --i) {
    offset += batch % lead_sizes_[i] * lead_strides_[i];
    batch /= lead_sizes_[i];
  }
  return offset;
}

namespace {

// The matrices of one batch as they lie in memory.
struct Operands {
  const char *a, *b;  // start of the matrix
  int64_t a_row, a_column, b_row, b_column;
  int64_t a_size, b_size;  // bytes of a code
  int64_t b_batch;         // which matrix of b
};

Operands OperandsOf(const MatmulShape& s, const tensorflow::MatMulBCast& bcast,
                    const Tensor& a, const Tensor& b, int64_t batch) {
  const bool broadcast = bcast.IsBroadcastingRequired();
  const int64_t a_batch = broadcast ? bcast.x_batch_indices()[batch] : batch;
  const int64_t b_batch = broadcast ? bcast.y_batch_indices()[batch] : batch;
  Operands o;
  o.a_size = tensorflow::DataTypeSize(a.dtype());
  o.b_size = tensorflow::DataTypeSize(b.dtype());
  o.a = static_cast<const char*>(a.data()) + a_batch * s.m * s.k * o.a_size;
  o.b = static_cast<const char*>(b.data()) + b_batch * s.k * s.n * o.b_size;
  o.a_row = s.transpose_a ? 1 : s.k;
  o.a_column = s.transpose_a ? s.m : 1;
  o.b_row = s.transpose_b ? 1 : s.n;
  o.b_column = s.transpose_b ? s.k : 1;
  o.b_batch = b_batch;
  return o;
}

// Rows [begin, end) of a, columns [first, first + count), contiguous in `copy` where
// they are not so already. Returns where they are and their stride.
const void* ContiguousRows(const Operands& o, int64_t begin, int64_t end, int64_t first,
                           int64_t count, std::vector<char>* copy, int64_t* stride) {
  if (o.a_column == 1) {
    *stride = o.a_row;
    return o.a + (begin * o.a_row + first) * o.a_size;
  }
  *stride = count;
  copy->resize((end - begin) * count * o.a_size);
  char* out = copy->data();
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = first; j < first + count; ++j, out += o.a_size) {
      std::memcpy(out, o.a + (i * o.a_row + j * o.a_column) * o.a_size, o.a_size);
    }
  }
  return copy->data();
}

Status PackInto(OpKernelContext* ctx, const ProductKernels& kernels,
                const ProductPlan& plan, const Operands& o, int64_t first, int64_t k,
                int64_t n, Tensor* packed) {
  const int64_t size = std::max<int64_t>(kernels.packed_size(plan, k, n), 1);
  if (packed->NumElements() != size) {
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_INT8, {size}, packed));
  }
  Parallel(ctx, n, 0.3 * k, [&](int64_t begin, int64_t end) {
    kernels.pack(plan, o.b + first * o.b_row * o.b_size, o.b_row, o.b_column, k, n,
                 begin, end, packed->data());
  });
  return absl::OkStatus();
}

// Rows at a time, so that their accumulators stay in the cache.
int64_t RowsAtOnce(const ProductPlan& plan, int64_t n) {
  constexpr int64_t kAccumulators = 32768;
  return std::max<int64_t>(1, kAccumulators / std::max<int64_t>(1, n * plan.bins));
}

}  // namespace

Status Product::Whole(OpKernelContext* ctx, const Tensor& a, const Tensor& b,
                      float* product, int32_t* kept, Counters* counters) const {
  const tensorflow::MatMulBCast bcast(shape.a.dim_sizes(), shape.b.dim_sizes());
  const ProductKernels& kernels = counters ? kProductPlain : Products(plan);
  const int64_t m = shape.m, k = shape.k, n = shape.n;
  if (shape.output.num_elements() == 0) return absl::OkStatus();
  Tensor packed;
  int64_t packed_batch = -1;
  for (int64_t batch = 0; batch < shape.batches(); ++batch) {
    const Operands o = OperandsOf(shape, bcast, a, b, batch);
    if (o.b_batch != packed_batch) {
      TF_RETURN_IF_ERROR(PackInto(ctx, kernels, plan, o, 0, k, n, &packed));
      packed_batch = o.b_batch;
    }
    Parallel(ctx, m, 0.05 * k * n, [&](int64_t first, int64_t last) {
      std::vector<char> copy;
      std::vector<int32_t> own;
      const int64_t at_once = RowsAtOnce(plan, n);
      if (kept == nullptr) own.resize(at_once * n * plan.bins);
      for (int64_t begin = first; begin < last; begin += at_once) {
        const int64_t end = std::min(last, begin + at_once);
        int64_t stride;
        const void* rows = ContiguousRows(o, begin, end, 0, k, &copy, &stride);
        int32_t* acc = kept ? kept + (batch * m + begin) * n * plan.bins : own.data();
        if (counters) {
          int64_t saturated, truncated;
          RowsWithCounts(plan, rows, stride, end - begin, k, n, packed.data(), acc,
                         &saturated, &truncated);
          counters->saturated += saturated;
          counters->truncated += truncated;
        } else {
          kernels.rows(plan, rows, stride, end - begin, k, n, packed.data(), acc);
        }
        for (int64_t i = begin; i < end; ++i) {
          for (int64_t j = 0; j < n; ++j, acc += plan.bins) {
            const double scale =
                ScaleProduct(a_scale.At(batch, i, 0), b_scale.At(batch, 0, j));
            product[(batch * m + i) * n + j] =
                ValueOf(plan.Total(acc), plan.value_exponent(), scale);
          }
        }
      }
    });
  }
  return absl::OkStatus();
}

Status Product::PerVector(OpKernelContext* ctx, const Tensor& a, const Tensor& b,
                          float* product) const {
  const tensorflow::MatMulBCast bcast(shape.a.dim_sizes(), shape.b.dim_sizes());
  const ProductKernels& kernels = Products(plan);
  const int64_t m = shape.m, k = shape.k, n = shape.n;
  std::fill(product, product + shape.output.num_elements(), 0.0f);
  if (shape.output.num_elements() == 0) return absl::OkStatus();
  Tensor packed;
  for (int64_t batch = 0; batch < shape.batches(); ++batch) {
    const Operands o = OperandsOf(shape, bcast, a, b, batch);
    for (int64_t v = 0; v < shape.vectors; ++v) {
      const int64_t at = v * plan.datapath.vector_size;
      const int64_t terms = std::min(k - at, plan.datapath.vector_size);
      TF_RETURN_IF_ERROR(PackInto(ctx, kernels, plan, o, at, terms, n, &packed));
      Parallel(ctx, m, 0.5 * terms * n, [&](int64_t first, int64_t last) {
        std::vector<char> copy;
        const int64_t at_once = RowsAtOnce(plan, n);
        std::vector<int32_t> own(at_once * n * plan.bins);
        for (int64_t begin = first; begin < last; begin += at_once) {
          const int64_t end = std::min(last, begin + at_once);
          int64_t stride;
          const void* rows = ContiguousRows(o, begin, end, at, terms, &copy, &stride);
          kernels.rows(plan, rows, stride, end - begin, terms, n, packed.data(),
                       own.data());
          const int32_t* acc = own.data();
          for (int64_t i = begin; i < end; ++i) {
            float* row = product + (batch * m + i) * n;
            for (int64_t j = 0; j < n; ++j, acc += plan.bins) {
              const double scale = ScaleProduct(
                  a_scale.At(batch, i, a_scale.changes_along_columns() ? v : 0),
                  b_scale.At(batch, b_scale.changes_along_rows() ? v : 0, j));
              row[j] += ValueOf(plan.Total(acc), plan.value_exponent(), scale);
            }
          }
        }
      });
    }
  }
  return absl::OkStatus();
}

}  // namespace lns
