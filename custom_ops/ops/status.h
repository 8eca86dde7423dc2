// The error that every check of an argument returns.

#ifndef TF_LNS_OPS_STATUS_H_
#define TF_LNS_OPS_STATUS_H_

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace lns {

using absl::Status;

template <typename... Args>
absl::Status InvalidArgument(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

}  // namespace lns

#endif  // TF_LNS_OPS_STATUS_H_
