// What several shape functions share. A shape function states what the kernel checks.

#ifndef TF_LNS_OPS_SHAPES_H_
#define TF_LNS_OPS_SHAPES_H_

#include <string>
#include <vector>

#include "core/format.h"
#include "ops/status.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lns {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// The format in attributes `<prefix>bits` and `<prefix>base_factor`, checked.
inline Status GetFormat(InferenceContext* c, const std::string& prefix,
                        Format* format) {
  TF_RETURN_IF_ERROR(c->GetAttr(prefix + "bits", &format->bits));
  TF_RETURN_IF_ERROR(c->GetAttr(prefix + "base_factor", &format->base_factor));
  const std::string error = format->Error();
  if (!error.empty()) return InvalidArgument(prefix, error);
  return absl::OkStatus();
}

// The shape of the scale of a tensor of shape x, from attributes `<prefix>axis` and, if
// it is an attribute of the op, `vector_size`.
Status ScaleShape(InferenceContext* c, ShapeHandle x, const std::string& prefix,
                  ShapeHandle* scale);

// Merges the shape of input `index` with the scale shape of x.
Status CheckScale(InferenceContext* c, ShapeHandle x, int index);

// Shape behind the resource handle at input `index`, unknown where it is not known.
ShapeHandle HandleShape(InferenceContext* c, int index);

// Checks that inputs first..last are scalars.
Status Scalars(InferenceContext* c, int first, int last);

}  // namespace lns

#endif  // TF_LNS_OPS_SHAPES_H_
