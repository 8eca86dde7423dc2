#include "kernels/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <utility>

namespace lns {
namespace {

constexpr InstructionSet kBestFirst[] = {InstructionSet::kAvx512Vbmi,
                                         InstructionSet::kAvx512, InstructionSet::kAvx2,
                                         InstructionSet::kPlain};

InstructionSet Select() {
  const char* wanted = std::getenv("TF_LNS_CPU");
  if (wanted != nullptr) {
    for (InstructionSet set : kBestFirst) {
      if (std::strcmp(wanted, Name(set)) == 0 && Supported(set)) return set;
    }
  }
  for (InstructionSet set : kBestFirst) {
    if (Supported(set)) return set;
  }
  return InstructionSet::kPlain;
}

}  // namespace

bool Supported(InstructionSet set) {
#if defined(__x86_64__)
  switch (set) {
    case InstructionSet::kPlain:
      return true;
    case InstructionSet::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2");
    case InstructionSet::kAvx512:
      return Supported(InstructionSet::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case InstructionSet::kAvx512Vbmi:
      return Supported(InstructionSet::kAvx512) &&
             __builtin_cpu_supports("avx512vbmi") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
#else
  return set == InstructionSet::kPlain;
#endif
}

const char* Name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512Vbmi:
      return "avx512vbmi";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    default:
      return "plain";
  }
}

InstructionSet SelectedInstructionSet() {
  static const InstructionSet selected = Select();
  return selected;
}

const CodecKernels& Codec() {
#if defined(__x86_64__)
  switch (SelectedInstructionSet()) {
    case InstructionSet::kAvx512Vbmi:
    case InstructionSet::kAvx512:
      return kCodecAvx512;
    case InstructionSet::kAvx2:
      return kCodecAvx2;
    default:
      return kCodecPlain;
  }
#else
  return kCodecPlain;
#endif
}

const MadamKernels& MadamOf(InstructionSet set) {
#if defined(__x86_64__)
  switch (set) {
    case InstructionSet::kAvx512Vbmi:
      return kMadamAvx512Vbmi;
    case InstructionSet::kAvx512:
      return kMadamAvx512;
    case InstructionSet::kAvx2:
      return kMadamAvx2;
    default:
      return kMadamPlain;
  }
#else
  return kMadamPlain;
#endif
}

const MadamKernels& Madam() { return MadamOf(SelectedInstructionSet()); }

const ProductKernels& ProductsOf(InstructionSet set, const ProductPlan& plan, int64_t m,
                                 int64_t k) {
#if defined(__x86_64__)
  // Rows from which on it pays to prepare terms for them.
  constexpr int64_t kManyRows = 16;
  const ProductKernels* best_first[] = {nullptr, nullptr, nullptr};
  switch (set) {
    case InstructionSet::kAvx512Vbmi:
      best_first[0] = &kProductPlanesAvx512Vbmi;
      [[fallthrough]];
    case InstructionSet::kAvx512:
      best_first[1] = &kProductScaledAvx512;
      best_first[2] = &kProductFloatsAvx512;
      break;
    case InstructionSet::kAvx2:
      best_first[1] = &kProductScaledAvx2;
      best_first[2] = &kProductFloatsAvx2;
      break;
    default:
      break;
  }
  if (plan.datapath.vector_size < 4) {
    std::swap(best_first[0], best_first[2]);  // the others prepare four terms and more
  } else if (m < kManyRows) {
    std::swap(best_first[1], best_first[2]);
  } else if (plan.bins > 2) {
    std::swap(best_first[0], best_first[1]);  // many tables of bytes for each bin
  }
  for (const ProductKernels* kernels : best_first) {
    if (kernels != nullptr && kernels->can(plan, k)) return *kernels;
  }
#endif
  return kProductPlain;
}

const ProductKernels& Products(const ProductPlan& plan, int64_t m, int64_t k) {
  return ProductsOf(SelectedInstructionSet(), plan, m, k);
}

const DepthwiseKernels& Depthwises() {
#if defined(__x86_64__)
  if (SelectedInstructionSet() >= InstructionSet::kAvx2) return kDepthwiseAvx2;
#endif
  return kDepthwisePlain;
}

std::vector<const ProductKernels*> AllProducts() {
  std::vector<const ProductKernels*> all;
#if defined(__x86_64__)
  if (Supported(InstructionSet::kAvx512Vbmi)) all.push_back(&kProductPlanesAvx512Vbmi);
  if (Supported(InstructionSet::kAvx512)) {
    all.insert(all.end(), {&kProductFloatsAvx512, &kProductScaledAvx512});
  }
  if (Supported(InstructionSet::kAvx2)) {
    all.insert(all.end(), {&kProductFloatsAvx2, &kProductScaledAvx2});
  }
#endif
  return all;
}

}  // namespace lns
