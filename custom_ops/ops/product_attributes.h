// The attributes of a datapath as the signatures of products state them.

#ifndef TF_LNS_OPS_PRODUCT_ATTRIBUTES_H_
#define TF_LNS_OPS_PRODUCT_ATTRIBUTES_H_

#include "core/product.h"
#include "ops/shapes.h"

#define LNS_DATAPATH_ATTRS           \
  Attr("lut_bits: int")              \
      .Attr("accumulator_bits: int") \
      .Attr("headroom_bits: int")    \
      .Attr("fraction_bits: int")    \
      .Attr("vector_size: int")      \
      .Attr("conversion: {'table', 'bins'}")

namespace lns {

// The datapath, checked.
Status GetDatapath(InferenceContext* c, Datapath* datapath);

// Checks the formats in `a_bits`, `b_bits` and `base_factor`.
Status CheckProductFormats(InferenceContext* c);

}  // namespace lns

#endif  // TF_LNS_OPS_PRODUCT_ATTRIBUTES_H_
