// Resource variables as the kernels need them: looked up, checked, writable in place.

#ifndef TF_LNS_KERNELS_RESOURCE_HELPERS_H_
#define TF_LNS_KERNELS_RESOURCE_HELPERS_H_

#include <cstring>

#include "core/format.h"
#include "kernels/op_helpers.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace lns {

// The variable behind the handle at input `index`, of dtype `dtype` and initialized.
inline Status LookUp(OpKernelContext* ctx, int index, DataType dtype, const char* name,
                     tensorflow::core::RefCountPtr<tensorflow::Var>* var) {
  const Tensor& handle = ctx->input(index);
  if (handle.NumElements() != 1) {
    return InvalidArgument(name, " must be one resource handle, got shape ",
                           handle.shape().DebugString());
  }
  TF_RETURN_IF_ERROR(
      tensorflow::LookupResource(ctx, tensorflow::HandleFromInput(ctx, index), var));
  tensorflow::tf_shared_lock lock(*(*var)->mu());
  if (!(*var)->is_initialized) {
    return absl::FailedPreconditionError(absl::StrCat(name, " is not initialized"));
  }
  const DataType actual = (*var)->tensor()->dtype();
  if (actual != dtype) {
    return InvalidArgument(name, " must be a variable of ",
                           tensorflow::DataTypeString(dtype), ", got ",
                           tensorflow::DataTypeString(actual));
  }
  return absl::OkStatus();
}

// Makes the variable's memory its own, for an update in place: a reader may still hold
// the buffer. The caller holds the variable's lock.
inline Status PrepareToWrite(OpKernelContext* ctx, tensorflow::Var* var) {
  Tensor* tensor = var->tensor();
  if (tensor->RefCountIsOne()) return absl::OkStatus();
  Tensor copy;
  TF_RETURN_IF_ERROR(ctx->allocate_temp(tensor->dtype(), tensor->shape(), &copy));
  std::memcpy(copy.data(), tensor->data(), tensor->TotalBytes());
  *tensor = copy;
  return absl::OkStatus();
}

// A scalar scale, checked.
inline Status GetWeightScale(OpKernelContext* ctx, int index, float* scale) {
  TF_RETURN_IF_ERROR(GetScalar(ctx, index, "scale", scale));
  if (!IsValidScale(*scale)) {
    return InvalidArgument("scale must be finite and at least 2^-126, got ", *scale);
  }
  return absl::OkStatus();
}

}  // namespace lns

#endif  // TF_LNS_KERNELS_RESOURCE_HELPERS_H_
