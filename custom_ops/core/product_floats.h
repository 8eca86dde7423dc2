// The terms of a datapath by float arithmetic that is exact where it matters, for
// kernels that compute a term from two numbers, one of each operand.

#ifndef TF_LNS_CORE_PRODUCT_FLOATS_H_
#define TF_LNS_CORE_PRODUCT_FLOATS_H_

#include <cstdint>
#include <vector>

namespace lns {

struct ProductPlan;

// In all of them a term is the float that comes out, truncated to an integer. The
// number of a code other than 0 is a float of its sign, whose other bits are
// mantissa[r] +
// ((q + field) << 23) for the exponent q * factor + r. The number of code 0 is 0.
struct FloatTerms {
  enum class Kind {
    kNone,
    // The product of two powers 2^(e/factor), rounded to the bits of a table's entry:
    // tables of one entry per remainder.
    kPowers,
    // The sum of the bits, which is Mitchell's line: no table.
    kLine,
    // That, the table's part of its fraction cleared, times the table's entry. Bins: an
    // entry of 1 for the terms of the bin, 0 for others.
    kTable,
    // The term of the sum of magnitudes, from memory: the slowest, for what is left. A
    // number is a sign and the code's magnitude; code 0 counts as `beyond`.
    kMemory,
  };
  static constexpr int kMaxTable = 16;

  Kind kind = Kind::kNone;
  std::vector<uint32_t> mantissa;
  int a_field = 0, b_field = 0;
  int table_bits = 0;
  float entry[kMaxTable] = {};  // of kTable; [h]
  int beyond = 0;
  std::vector<int32_t> term;  // of kMemory; [sum of magnitudes], 0 from `beyond` on

  FloatTerms() = default;
  explicit FloatTerms(const ProductPlan& plan);

 private:
  bool InFloats(const ProductPlan& plan);
};

// A term as that of one operand's octave 0, times a power of two: exact, until it is
// truncated.
struct ScaledTerms {
  static constexpr int kMaxFactor = 16;

  bool possible = false;
  std::vector<float> a;    // the power of two of a code, 0 for 0; [code + max_code]
  int32_t b_exponent = 0;  // of a float 2^q, q the octave of b: bits (q + this) << 23
  std::vector<float> number;  // n, of which the terms are; [bin][rest of a][rest of b]

  ScaledTerms() = default;
  explicit ScaledTerms(const ProductPlan& plan);
};

}  // namespace lns

#endif  // TF_LNS_CORE_PRODUCT_FLOATS_H_
