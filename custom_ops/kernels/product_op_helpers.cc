#include "kernels/product_op_helpers.h"

#include <cstring>

#include "kernels/dispatch.h"
#include "kernels/product_kernels.h"
#include "tensorflow/core/platform/denormal.h"
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

void ShareOut(OpKernelContext* ctx, int64_t n, double nanoseconds_each,
              const std::function<void(int64_t)>& work) {
  constexpr double kSmallest = 50000.0;
  auto* pool = ctx->device()->tensorflow_cpu_worker_threads()->workers;
  if (pool->NumThreads() <= 1 || n <= 1 || n * nanoseconds_each < kSmallest) {
    for (int64_t i = 0; i < n; ++i) work(i);
    return;
  }
  pool->ParallelFor(n, tsl::thread::ThreadPool::SchedulingParams::Fixed(1),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) work(i);
                    });
}

Status CheckCodes(OpKernelContext* ctx, const Format& format, const Tensor& codes,
                  const char* name) {
  const char* data = static_cast<const char*>(codes.data());
  const int64_t size = tensorflow::DataTypeSize(codes.dtype());
  FirstPosition first;
  Parallel(ctx, codes.NumElements(), 0.03, [&](int64_t begin, int64_t end) {
    const int64_t at = FirstOutside(format, data + begin * size, end - begin);
    if (at >= 0) first.Report(begin + at);
  });
  if (first.get() < 0) return absl::OkStatus();
  return InvalidArgument(name, " must hold codes in -", format.max_code(), "..",
                         format.max_code(), "; the first outside is at flat index ",
                         first.get());
}

bool ScaleGrid::changes_along_lead() const {
  return std::any_of(lead_strides_.begin(), lead_strides_.end(),
                     [](int64_t stride) { return stride != 0; });
}

namespace {

// Columns and rows that a piece of the work has at least, where several threads share
// it: a kernel prepares the columns of b for each piece of rows, and the reverse.
constexpr int64_t kRowsPerPiece = 128;

// Products of one matrix each, from tensors or parts of them.
struct Multiplication {
  const char* b = nullptr;
  int64_t b_row = 0, b_column = 0;  // strides, in elements
  ProductBlock block;               // of all rows and columns
};

int64_t CeilOf(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Runner {
 public:
  Runner(OpKernelContext* ctx, const ProductPlan& plan, const ProductKernels& kernels,
         int64_t m, int64_t k, int64_t n)
      : ctx_(ctx), plan_(plan), kernels_(kernels), m_(m), k_(k), n_(n) {
    threads_ = ctx->device()->tensorflow_cpu_worker_threads()->workers->NumThreads();
  }

  // Runs products that have nothing to do with each other, at(i) for all i < count.
  Status Run(int64_t count, const std::function<Multiplication(int64_t)>& at) {
    if (count < threads_ || Nanoseconds(m_, n_) > 2e6) {
      for (int64_t i = 0; i < count; ++i) TF_RETURN_IF_ERROR(Divided(at(i)));
      return absl::OkStatus();
    }
    // Several in a row, so that a b they have in common is packed once.
    const int64_t pieces = std::min<int64_t>(count, 8 * threads_);
    std::vector<Tensor> packed(pieces);
    for (Tensor& buffer : packed) TF_RETURN_IF_ERROR(Allocate(n_, &buffer));
    ShareOut(ctx_, pieces, Nanoseconds(m_, n_) * count / pieces, [&](int64_t piece) {
      const char* packed_b = nullptr;
      const int64_t end = count * (piece + 1) / pieces;
      for (int64_t i = count * piece / pieces; i < end; ++i) {
        Multiplication one = at(i);
        if (one.b != packed_b) Pack(one, 0, n_, &packed[piece]);
        packed_b = one.b;
        one.block.packed = packed[piece].data();
        Rows(one.block);
      }
    });
    return absl::OkStatus();
  }

  bool good() const { return good_; }

 private:
  double Nanoseconds(double rows, double columns) const {
    return (0.03 * rows + 0.3) * k_ * columns * plan_.bins;
  }

  Status Allocate(int64_t columns, Tensor* packed) const {
    const int64_t size = std::max<int64_t>(kernels_.packed_size(plan_, k_, columns), 1);
    return ctx_->allocate_temp(tensorflow::DT_INT8, {size}, packed);
  }

  void Pack(const Multiplication& one, int64_t begin, int64_t end, Tensor* packed) {
    if (!kernels_.pack(plan_, one.b, one.b_row, one.b_column, k_, one.block.n, begin,
                       end, packed->data())) {
      good_ = false;
    }
  }

  // Sums of values are those of the reference, so denormals count.
  void Rows(const ProductBlock& block) const {
    if (!block.add) return kernels_.rows(plan_, block);
    const tensorflow::port::ScopedDontFlushDenormal with_denormals;
    kernels_.rows(plan_, block);
  }

  // One product on all threads: its columns are shared out, and its rows where there
  // are too few columns.
  Status Divided(const Multiplication& one) {
    const int64_t panels = CeilOf(n_, kProductPanel);
    const int64_t wanted = threads_ == 1 ? 1 : 4 * threads_;
    const int64_t width = CeilOf(panels, std::min(wanted, panels)) * kProductPanel;
    const int64_t across = CeilOf(n_, width);
    const int64_t down =
        std::max<int64_t>(1, std::min(CeilOf(wanted, across), m_ / kRowsPerPiece));
    if (down == 1) return ByColumns(one, across, width);
    if (packed_.NumElements() == 0) TF_RETURN_IF_ERROR(Allocate(n_, &packed_));
    Parallel(ctx_, n_, 0.3 * k_,
             [&](int64_t begin, int64_t end) { Pack(one, begin, end, &packed_); });
    ShareOut(ctx_, across * down, Nanoseconds(m_, n_) / (across * down),
             [&](int64_t i) {
               const int64_t first = m_ * (i / across) / down;
               const int64_t last = m_ * (i / across + 1) / down;
               ProductBlock block = one.block;
               block.m = last - first;
               block.a = static_cast<const char*>(block.a) +
                         first * block.row_stride * (plan_.a.bits <= 8 ? 1 : 2);
               block.packed = packed_.data();
               block.begin = i % across * width;
               block.end = std::min(n_, block.begin + width);
               if (block.accumulators) {
                 block.accumulators += first * block.result_stride * plan_.bins;
               }
               if (block.product) block.product += first * block.result_stride;
               block.row_scale += first * block.row_scale_stride;
               Rows(block);
             });
    return absl::OkStatus();
  }

  // Each piece packs its columns, for few rows so many at a time as a cache holds.
  Status ByColumns(const Multiplication& one, int64_t pieces, int64_t width) {
    constexpr int64_t kPackedBytes = 256 * 1024;
    constexpr int64_t kFewRows = 64;
    int64_t step = width;
    if (m_ <= kFewRows) {
      const int64_t panel_bytes = kernels_.packed_size(plan_, k_, kProductPanel) + 1;
      step = std::min(width,
                      std::max<int64_t>(1, kPackedBytes / panel_bytes) * kProductPanel);
    }
    std::vector<Tensor> packed(pieces);
    for (Tensor& buffer : packed) TF_RETURN_IF_ERROR(Allocate(step, &buffer));
    ShareOut(ctx_, pieces, Nanoseconds(m_, n_) / pieces, [&](int64_t piece) {
      const int64_t end = std::min(n_, (piece + 1) * width);
      for (int64_t j = piece * width; j < end; j += step) {
        // Columns [j, j + step) as a product of their own.
        Multiplication part = one;
        part.b += j * one.b_column * (plan_.b.bits <= 8 ? 1 : 2);
        ProductBlock& block = part.block;
        block.n = block.end = std::min(step, end - j);
        if (block.accumulators) block.accumulators += j * plan_.bins;
        if (block.product) block.product += j;
        block.column_scale += j * block.column_scale_stride;
        Pack(part, 0, block.n, &packed[piece]);
        block.packed = packed[piece].data();
        Rows(block);
      }
    });
    return absl::OkStatus();
  }

  OpKernelContext* ctx_;
  const ProductPlan& plan_;
  const ProductKernels& kernels_;
  const int64_t m_, k_, n_;
  int threads_;
  Tensor packed_;
  std::atomic<bool> good_{true};
};

// What all parts of a product have in common.
Multiplication MatrixOf(const MatmulShape& s, const Tensor& a, const Tensor& b,
                        int64_t a_batch, int64_t b_batch) {
  Multiplication one;
  const int64_t a_size = tensorflow::DataTypeSize(a.dtype());
  const int64_t b_size = tensorflow::DataTypeSize(b.dtype());
  one.b = static_cast<const char*>(b.data()) + b_batch * s.k * s.n * b_size;
  one.b_row = s.transpose_b ? 1 : s.n;
  one.b_column = s.transpose_b ? s.k : 1;
  ProductBlock& block = one.block;
  block.a = static_cast<const char*>(a.data()) + a_batch * s.m * s.k * a_size;
  block.row_stride = s.transpose_a ? 1 : s.k;
  block.column_stride = s.transpose_a ? s.m : 1;
  block.m = s.m;
  block.k = s.k;
  block.n = block.end = block.result_stride = s.n;
  return one;
}

// With counts of what happened inside.
Status Counted(OpKernelContext* ctx, const ProductPlan& plan, const Multiplication& one,
               Counters* counters, bool* good) {
  const ProductBlock& whole = one.block;
  const int64_t k = whole.k, n = whole.n;
  Tensor packed;
  const int64_t size = std::max<int64_t>(kProductPlain.packed_size(plan, k, n), 1);
  TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_INT8, {size}, &packed));
  if (!kProductPlain.pack(plan, one.b, one.b_row, one.b_column, k, n, 0, n,
                          packed.data())) {
    *good = false;
  }
  const int64_t a_size = plan.a.bits <= 8 ? 1 : 2;
  ShareOut(ctx, whole.m, 2.0 * k * n, [&](int64_t row) {
    ProductBlock block = whole;
    block.a = static_cast<const char*>(whole.a) + row * whole.row_stride * a_size;
    block.m = 1;
    block.packed = packed.data();
    block.accumulators += row * block.result_stride * plan.bins;
    block.product += row * block.result_stride;
    block.row_scale += row * block.row_scale_stride;
    int64_t saturated, truncated;
    RowsWithCounts(plan, block, &saturated, &truncated);
    counters->saturated += saturated;
    counters->truncated += truncated;
  });
  return absl::OkStatus();
}

}  // namespace

Status Product::Whole(OpKernelContext* ctx, const Tensor& a, const Tensor& b,
                      float* product, int32_t* kept, Counters* counters,
                      bool* good) const {
  if (shape.output.num_elements() == 0) return absl::OkStatus();
  const tensorflow::MatMulBCast bcast(shape.a.dim_sizes(), shape.b.dim_sizes());
  const bool broadcast = bcast.IsBroadcastingRequired();
  MatmulShape s = shape;
  int64_t batches = shape.batches();
  // One b for all: the rows of all batches are those of one matrix.
  const bool one_b = b.NumElements() == s.k * s.n && !s.transpose_a &&
                     a.NumElements() == batches * s.m * s.k;
  const bool one_scale = !a_scale.changes_along_lead() &&
                         !b_scale.changes_along_lead() &&
                         (batches == 1 || a_scale.row_stride() == 0);
  const bool joined = one_b && one_scale;
  if (joined) {
    s.m *= batches;
    batches = 1;
  }
  const auto at = [&](int64_t batch) {
    Multiplication one =
        MatrixOf(s, a, b, broadcast && !joined ? bcast.x_batch_indices()[batch] : batch,
                 broadcast && !joined ? bcast.y_batch_indices()[batch] : batch);
    ProductBlock& block = one.block;
    block.accumulators = kept ? kept + batch * s.m * s.n * plan.bins : nullptr;
    block.product = product + batch * s.m * s.n;
    block.row_scale = a_scale.At(batch, 0, 0);
    block.row_scale_stride = a_scale.row_stride();
    block.column_scale = b_scale.At(batch, 0, 0);
    block.column_scale_stride = b_scale.column_stride();
    return one;
  };
  if (counters) {
    for (int64_t i = 0; i < batches; ++i) {
      TF_RETURN_IF_ERROR(Counted(ctx, plan, at(i), counters, good));
    }
    return absl::OkStatus();
  }
  Runner runner(ctx, plan, Products(plan, s.m, s.k), s.m, s.k, s.n);
  TF_RETURN_IF_ERROR(runner.Run(batches, at));
  *good = runner.good();
  return absl::OkStatus();
}

Status Product::PerVector(OpKernelContext* ctx, const Tensor& a, const Tensor& b,
                          float* product, bool* good) const {
  std::fill(product, product + shape.output.num_elements(), 0.0f);
  if (shape.output.num_elements() == 0) return absl::OkStatus();
  const tensorflow::MatMulBCast bcast(shape.a.dim_sizes(), shape.b.dim_sizes());
  const bool broadcast = bcast.IsBroadcastingRequired();
  const int64_t size = plan.datapath.vector_size;
  const int64_t a_size = tensorflow::DataTypeSize(a.dtype());
  const int64_t b_size = tensorflow::DataTypeSize(b.dtype());
  for (int64_t v = 0; v < shape.vectors; ++v) {
    const int64_t first = v * size, terms = std::min(shape.k - first, size);
    const auto at = [&](int64_t batch) {
      Multiplication one =
          MatrixOf(shape, a, b, broadcast ? bcast.x_batch_indices()[batch] : batch,
                   broadcast ? bcast.y_batch_indices()[batch] : batch);
      ProductBlock& block = one.block;
      one.b += first * one.b_row * b_size;
      block.a =
          static_cast<const char*>(block.a) + first * block.column_stride * a_size;
      block.k = terms;
      block.product = product + batch * shape.m * shape.n;
      block.add = true;
      block.row_scale = a_scale.At(batch, 0, a_scale.column_stride() ? v : 0);
      block.row_scale_stride = a_scale.row_stride();
      block.column_scale = b_scale.At(batch, b_scale.row_stride() ? v : 0, 0);
      block.column_scale_stride = b_scale.column_stride();
      return one;
    };
    Runner runner(ctx, plan, Products(plan, shape.m, terms), shape.m, terms, shape.n);
    TF_RETURN_IF_ERROR(runner.Run(shape.batches(), at));
    *good = *good && runner.good();
  }
  return absl::OkStatus();
}

}  // namespace lns
