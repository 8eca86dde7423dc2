#include "ops/product_attributes.h"

namespace lns {

Status GetDatapath(InferenceContext* c, Datapath* datapath) {
  std::string conversion;
  TF_RETURN_IF_ERROR(c->GetAttr("lut_bits", &datapath->lut_bits));
  TF_RETURN_IF_ERROR(c->GetAttr("accumulator_bits", &datapath->accumulator_bits));
  TF_RETURN_IF_ERROR(c->GetAttr("headroom_bits", &datapath->headroom_bits));
  TF_RETURN_IF_ERROR(c->GetAttr("fraction_bits", &datapath->fraction_bits));
  TF_RETURN_IF_ERROR(c->GetAttr("vector_size", &datapath->vector_size));
  TF_RETURN_IF_ERROR(c->GetAttr("conversion", &conversion));
  datapath->bins = conversion == "bins";
  int base_factor;
  TF_RETURN_IF_ERROR(c->GetAttr("base_factor", &base_factor));
  const std::string error = datapath->Error(base_factor);
  return error.empty() ? absl::OkStatus() : InvalidArgument(error);
}

Status CheckProductFormats(InferenceContext* c) {
  for (const char* bits : {"a_bits", "b_bits"}) {
    Format format;
    TF_RETURN_IF_ERROR(c->GetAttr(bits, &format.bits));
    TF_RETURN_IF_ERROR(c->GetAttr("base_factor", &format.base_factor));
    const std::string error = format.Error();
    if (!error.empty()) return InvalidArgument(bits, ": ", error);
  }
  return absl::OkStatus();
}

}  // namespace lns
