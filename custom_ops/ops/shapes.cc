#include "ops/shapes.h"

namespace lns {

Status ScaleShape(InferenceContext* c, ShapeHandle x, const std::string& prefix,
                  ShapeHandle* scale) {
  std::vector<int32_t> axis;
  TF_RETURN_IF_ERROR(c->GetAttr(prefix + "axis", &axis));
  int64_t vector_size = 0;
  if (prefix.empty()) TF_RETURN_IF_ERROR(c->GetAttr("vector_size", &vector_size));
  if (vector_size < 0) {
    return InvalidArgument("vector_size must be at least 1, or 0 for none, got ",
                           vector_size);
  }
  for (size_t i = 1; i < axis.size(); ++i) {
    if (axis[i] != axis[i - 1] + 1) {
      return InvalidArgument(prefix,
                             "axis must name neighbouring axes in rising order");
    }
  }
  if (vector_size > 0 && axis.size() != 1) {
    return InvalidArgument("vector_size needs exactly one axis, got ", axis.size());
  }
  if (axis.empty()) {
    *scale = c->Scalar();
    return absl::OkStatus();
  }
  if (axis.front() < 0) {
    return InvalidArgument(prefix, "axis must not be negative, got ", axis.front());
  }
  if (!c->RankKnown(x)) {
    *scale = vector_size > 0 ? c->UnknownShape() : c->UnknownShapeOfRank(axis.size());
    return absl::OkStatus();
  }
  if (axis.back() >= c->Rank(x)) {
    return InvalidArgument(prefix, "axis ", axis.back(), " is out of range for rank ",
                           c->Rank(x));
  }
  if (vector_size == 0) {
    std::vector<DimensionHandle> dims;
    for (int32_t a : axis) dims.push_back(c->Dim(x, a));
    *scale = c->MakeShape(dims);
    return absl::OkStatus();
  }
  DimensionHandle blocks = c->UnknownDim();
  const DimensionHandle size = c->Dim(x, axis[0]);
  if (c->ValueKnown(size)) {
    const int64_t n = c->Value(size);
    blocks = c->MakeDim(n / vector_size + (n % vector_size != 0));
  }
  return c->ReplaceDim(x, axis[0], blocks, scale);
}

Status CheckScale(InferenceContext* c, ShapeHandle x, int index) {
  ShapeHandle expected, merged;
  TF_RETURN_IF_ERROR(ScaleShape(c, x, "", &expected));
  const Status status = c->Merge(c->input(index), expected, &merged);
  if (!status.ok()) {
    return InvalidArgument("scale must have shape ", c->DebugString(expected), ", got ",
                           c->DebugString(c->input(index)));
  }
  return absl::OkStatus();
}

ShapeHandle HandleShape(InferenceContext* c, int index) {
  const auto* data = c->input_handle_shapes_and_types(index);
  if (data == nullptr || data->size() != 1) return c->UnknownShape();
  return (*data)[0].shape;
}

Status Scalars(InferenceContext* c, int first, int last) {
  ShapeHandle unused;
  for (int i = first; i <= last; ++i)
    TF_RETURN_IF_ERROR(c->WithRank(c->input(i), 0, &unused));
  return absl::OkStatus();
}

}  // namespace lns
