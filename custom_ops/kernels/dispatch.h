// Which implementation of the kernels runs on this CPU.

#ifndef TF_LNS_KERNELS_DISPATCH_H_
#define TF_LNS_KERNELS_DISPATCH_H_

#include <vector>

#include "kernels/codec_kernels.h"
#include "kernels/depthwise_kernels.h"
#include "kernels/madam_kernels.h"
#include "kernels/product_kernels.h"

namespace lns {

enum class InstructionSet { kPlain, kAvx2, kAvx512, kAvx512Vbmi };  // each has the last

// Whether this CPU has the set, and the library kernels for it.
bool Supported(InstructionSet set);

// The best that the CPU has, or what the environment variable TF_LNS_CPU asks for
// ("plain", "avx2", "avx512", "avx512vbmi"; one that the CPU lacks falls back to the
// best). Read once per process.
InstructionSet SelectedInstructionSet();

const char* Name(InstructionSet set);

const CodecKernels& Codec();
const MadamKernels& Madam();

// The fastest way to a product of m rows of a and k terms.
const ProductKernels& Products(const ProductPlan& plan, int64_t m, int64_t k);

// The kernels of a set that is supported.
const MadamKernels& MadamOf(InstructionSet set);
const ProductKernels& ProductsOf(InstructionSet set, const ProductPlan& plan, int64_t m,
                                 int64_t k);

// The fastest way to a depthwise convolution whose plan fits.
const DepthwiseKernels& Depthwises();

// All ways to a product that this CPU can run, but for the plain one.
std::vector<const ProductKernels*> AllProducts();

}  // namespace lns

#endif  // TF_LNS_KERNELS_DISPATCH_H_
