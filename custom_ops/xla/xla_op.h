// What the lowerings share as ops: the static checks of the CPU kernels, made while a
// function is compiled.

#ifndef TF_LNS_XLA_XLA_OP_H_
#define TF_LNS_XLA_XLA_OP_H_

#include "kernels/op_helpers.h"
#include "tensorflow/compiler/tf2xla/shape_util.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "xla/lns_math.h"

namespace lns::lowering {

using ::tensorflow::DataType;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::TensorShape;
using ::tensorflow::XlaOpKernel;
using ::tensorflow::XlaOpKernelContext;

inline Status GetShape(XlaOpKernelContext* ctx, int index, TensorShape* shape) {
  const auto found = ctx->InputXlaShape(index);
  TF_RETURN_IF_ERROR(found.status());
  return ::tensorflow::XLAShapeToTensorShape(*found, shape);
}

inline Status CheckScalar(XlaOpKernelContext* ctx, int index, const char* name) {
  TensorShape shape;
  TF_RETURN_IF_ERROR(GetShape(ctx, index, &shape));
  if (shape.dims() == 0) return absl::OkStatus();
  return InvalidArgument(name, " must be a scalar, got shape ", shape.DebugString());
}

// The scale at input `index`, valid and laid over a tensor of shape `shape`.
inline Status GetScale(XlaOpKernelContext* ctx, int index, const ScaleLayout& layout,
                       const TensorShape& shape, XlaOp* scale) {
  ScaleView view;
  TF_RETURN_IF_ERROR(layout.View(shape, &view));
  TensorShape actual;
  TF_RETURN_IF_ERROR(GetShape(ctx, index, &actual));
  const TensorShape expected = layout.ScaleShape(shape);
  if (actual != expected) {
    return InvalidArgument("scale must have shape ", expected.DebugString(), ", got ",
                           actual.DebugString());
  }
  *scale = ExpandScale(ValidScale(ctx->Input(index)), shape.dim_sizes(), layout.axis,
                       view.vector_size);
  return absl::OkStatus();
}

// Registers a lowering with each device that XLA compiles for. REGISTER_XLA_OP would
// not do: its list is read once, when the process first uses TensorFlow, and an op
// library may be loaded later.
#define LNS_REGISTER_LOWERING(OP, CLASS)                          \
  REGISTER_KERNEL_BUILDER(Name(OP).Device("XLA_CPU_JIT"), CLASS); \
  REGISTER_KERNEL_BUILDER(Name(OP).Device("XLA_GPU_JIT"), CLASS); \
  REGISTER_KERNEL_BUILDER(Name(OP).Device("XLA_TPU_JIT"), CLASS)

// Codes in their stored type.
inline XlaOp ToCodeType(const Format& format, XlaOp codes) {
  return ::xla::ConvertElementType(codes, format.bits <= 8 ? ::xla::S8 : ::xla::S16);
}

}  // namespace lns::lowering

#endif  // TF_LNS_XLA_XLA_OP_H_
