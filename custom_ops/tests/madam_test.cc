// Every implementation of the LNS-Madam step against the plain one, bit for bit.

#include <xmmintrin.h>

#include <cstdio>
#include <cmath>
#include <memory>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "tests/check.h"

namespace lns {
namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : key_(seed) {}
  uint32_t operator()() { return RandomBits(key_, i_++); }
  uint32_t Below(uint32_t n) { return (*this)() % n; }
  float Uniform() { return static_cast<float>((*this)() >> 8) * 0x1p-24f; }

 private:
  RandomKey key_;
  uint64_t i_ = 0;
};

template <typename T>
bool Same(const std::vector<T>& a, const std::vector<T>& b, size_t* where) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) {
      *where = i;
      return false;
    }
  }
  return true;
}

// A state and a gradient; codes lie one element into their buffer, so nothing is
// aligned.
template <typename Code>
struct State {
  std::vector<Code> codes;
  std::vector<float> v, w, g;
  std::vector<uint8_t> k;
};

enum class Gradients { kNormal, kAnyBits, kSpecial, kTies };

// A gradient whose quotient with the root of v lies at or next to a rounding boundary.
float TieGradient(const MadamPlan& plan, float v, Random* random) {
  const double step = random->Below(40) + 0.5;
  const double decay = random->Below(2) ? plan.weight_decay : -plan.weight_decay;
  const double g_hat = step / std::max(std::fabs(plan.rate), 1e-3f) - decay;
  // g^2 = g_hat^2 c (beta v + (1 - beta) g^2)
  const double ratio = g_hat * g_hat * plan.correction;
  const double left = 1.0 - ratio * (1.0 - plan.beta);
  const double square = left > 0.0 ? ratio * plan.beta * v / left : 1.0;
  const float g = static_cast<float>(std::min(std::sqrt(square), 1e18));
  const uint32_t near = random->Below(5) - 2;
  return FromBits(Bits(g) + (g > 1e-18f ? near : 0)) *
         (random->Below(2) ? 1.0f : -1.0f);
}

template <typename Code>
State<Code> Make(const MadamPlan& plan, Gradients kind, int64_t n, Random* random) {
  const uint32_t special[] = {0,          1,          0x007FFFFF, 0x00800000,
                              0x00800001, 0x1F800000, 0x20000000, 0x5EFFFFFF,
                              0x5F000000, 0x5F000001, 0x5F7FFFFF, 0x7F7FFFFF,
                              0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF,
                              0x3F800000, 0x41200000, 0x3F800001, 0x3F7FFFFF};
  State<Code> s;
  const int32_t top = plan.format.max_code();
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t pick = random->Below(16);
    int32_t code = static_cast<int32_t>(random->Below(2 * top + 1)) - top;
    if (pick == 0) code = 0;
    if (pick == 1) code = random->Below(2) ? top : -top;
    if (pick == 2) code = random->Below(2) ? 1 : -1;
    s.codes.push_back(static_cast<Code>(code));
    float v = FromBits(0x30000000u + random->Below(0x20000000u));
    if (random->Below(8) == 0) v = 0.0f;
    if (random->Below(16) == 0) v = FromBits(random->Below(0x02000000u));  // about tiny
    float g = (random->Uniform() + random->Uniform() - 1.0f) * 4.0f;
    if (kind == Gradients::kNormal) {
      v = (random->Uniform() + 0.1f);
    } else if (kind == Gradients::kAnyBits) {
      g = FromBits((*random)());
      // And a v of like size.
      if (random->Below(2)) {
        v = FromBits(Bits(g * g) & kMagnitudeMask);
        if (Bits(v) >= kInfBits) v = 1.0f;
      }
    } else if (kind == Gradients::kSpecial) {
      if (random->Below(2)) {
        g = FromBits(special[random->Below(20)] | (random->Below(2) ? 0x80000000u : 0));
      }
      if (random->Below(4) == 0) v = FromBits(special[random->Below(20)]);
      if (random->Below(64) == 0) v = -1.0f;
    } else {
      v = random->Uniform() + 0.01f;
      g = TieGradient(plan, v, random);
    }
    s.v.push_back(v);
    s.g.push_back(g);
    const float w = kind == Gradients::kNormal ? g : FromBits((*random)());
    s.w.push_back((Bits(w) & kMagnitudeMask) < kInfBits ? w : 1.0f);
    uint8_t k = static_cast<uint8_t>(random->Below(128));
    if (pick == 3) k = 0;
    if (kind == Gradients::kSpecial && pick == 4) k = 200;
    s.k.push_back(k);
  }
  return s;
}

std::string Describe(const MadamPlan& plan, Gradients kind, int64_t n,
                     const char* set) {
  char text[256];
  std::snprintf(
      text, sizeof(text),
      "%s n %ld bits %d kind %d rate %g decay %g bound %g beta %g %s%s cap %d "
      "floor %d E %d",
      set, static_cast<long>(n), plan.format.bits, static_cast<int>(kind), plan.rate,
      plan.weight_decay, plan.g_bound, plan.beta,
      plan.rounding == Rounding::kStochastic ? "stochastic" : "nearest",
      plan.round_gradient ? " rounded" : "", plan.cap, plan.floor, plan.exponent);
  return text;
}

template <typename Code>
void Compare(InstructionSet set, const MadamPlan& plan, Gradients kind, int64_t n,
             uint64_t index, Random* random) {
  const MadamKernels& kernels = MadamOf(set);
  const State<Code> start = Make<Code>(plan, kind, n + 1, random);
  const std::string what = Describe(plan, kind, n, Name(set));
  size_t at = 0;
  const float* g = start.g.data() + 1;
  {
    State<Code> a = start, b = start;
    const int64_t bad_a =
        kMadamPlain.step(plan, a.codes.data() + 1, a.v.data() + 1, g, index, n);
    const int64_t bad_b =
        kernels.step(plan, b.codes.data() + 1, b.v.data() + 1, g, index, n);
    const bool good =
        bad_a == bad_b && Same(a.codes, b.codes, &at) && Same(a.v, b.v, &at);
    Check(good, "step: " + what + " at " + std::to_string(at));
    if (!good && failed < 10) {
      std::printf("  code %d g %a v %a -> %d or %d, v %a or %a, bad %ld %ld\n",
                  start.codes[at], start.g[at], start.v[at], a.codes[at], b.codes[at],
                  a.v[at], b.v[at], static_cast<long>(bad_a), static_cast<long>(bad_b));
    }
  }
  {
    State<Code> a = start, b = start;
    int32_t top_a = -1, top_b = -1;
    const int64_t bad_a = kMadamPlain.step_compact(plan, a.codes.data() + 1,
                                                   a.k.data() + 1, g, index, n, &top_a);
    const int64_t bad_b = kernels.step_compact(plan, b.codes.data() + 1, b.k.data() + 1,
                                               g, index, n, &top_b);
    const bool good = bad_a == bad_b && top_a == top_b && Same(a.codes, b.codes, &at) &&
                      Same(a.k, b.k, &at);
    Check(good, "compact: " + what + " at " + std::to_string(at));
    if (!good && failed < 10) {
      std::printf("  code %d g %a k %d -> %d or %d, k %d or %d, top %d %d\n",
                  start.codes[at], start.g[at], start.k[at], a.codes[at], b.codes[at],
                  a.k[at], b.k[at], top_a, top_b);
    }
    for (int32_t shift : {1, 3, 7, -1, -20, -31, 1000, -1000}) {
      std::vector<uint8_t> c = a.k, d = a.k;
      kMadamPlain.shift_compact(c.data() + 1, shift, n);
      kernels.shift_compact(d.data() + 1, shift, n);
      Check(Same(c, d, &at), "shift: " + what + " at " + std::to_string(at));
    }
  }
  {
    State<Code> a = start, b = start;
    const int64_t bad_a =
        kMadamPlain.additive(plan, a.w.data() + 1, a.v.data() + 1, g, n);
    const int64_t bad_b = kernels.additive(plan, b.w.data() + 1, b.v.data() + 1, g, n);
    Check(bad_a == bad_b && Same(a.w, b.w, &at) && Same(a.v, b.v, &at),
          "additive: " + what + " at " + std::to_string(at));
  }
}

MadamPlan RandomPlan(Random* random,
                     const std::vector<std::unique_ptr<CompactTables>>& tables,
                     const std::vector<float>& betas) {
  const Format formats[] = {{16, 2048}, {8, 8}, {16, 4096}, {10, 32}, {2, 1},
                            {5, 2},     {7, 4}, {12, 128},  {9, 1}};
  const float rates[] = {0x1p-4f, 0x1p-7f, 0.0123f, 1.0f,    0.0f,
                         -0.01f,  1e-30f,  1e30f,   40000.f, 0x1.8p-11f};
  const float decays[] = {0.0f, 0.0f, 0.0f, 0.01f, -0.5f, 1e-9f, 1e-12f, 1e-38f, 1e30f};
  const float bounds[] = {10.0f, 10.0f, 10.0f, 1.0f, 0.37f, 1e-30f, 1e30f, 4000.0f};
  const int64_t steps[] = {1, 2, 100, 1000000, 7};
  const size_t b = random->Below(static_cast<uint32_t>(betas.size()));
  const Format format = formats[random->Below(9)];
  const uint32_t top = format.max_exponent() + 1;
  MadamPlan plan = MadamPlan::Make(
      format, betas[b], bounds[random->Below(8)], rates[random->Below(10)],
      decays[random->Below(9)], steps[random->Below(5)], (*random)(),
      random->Below(2) ? Rounding::kStochastic : Rounding::kNearest,
      random->Below(6) == 0,
      random->Below(3) == 0 ? static_cast<int32_t>(random->Below(top)) : -1,
      random->Below(4) == 0 ? static_cast<int32_t>(random->Below(top)) : -1);
  plan.compact = tables[b].get();
  const int32_t exponents[] = {0, -5, 3, 140, -120, 60, 1, 2, -61};
  plan.exponent = exponents[random->Below(9)];
  return plan;
}

template <typename Code>
void Millions(InstructionSet set, const CompactTables& tables, Random* random) {
  // The default, where the fast way has to find every step that it may get wrong.
  for (float rate : {0x1p-4f, 0.0123f, 0x1p-9f}) {
    for (Rounding rounding : {Rounding::kNearest, Rounding::kStochastic}) {
      MadamPlan plan = MadamPlan::Make({16, 2048}, 0.999f, 10.0f, rate,
                                       rate == 0.0123f ? 0.003f : 0.0f, 50, 7, rounding,
                                       false, -1, -1);
      plan.compact = &tables;
      Compare<Code>(set, plan, Gradients::kNormal, 400000, 64, random);
      Compare<Code>(set, plan, Gradients::kTies, 200000, 64, random);
    }
  }
}

void Run() {
  std::vector<float> betas = {
      0.999f, 0.999f, 0.9f, 0.5f, 0.99999f, 0.01f, FromBits(0x3F7FFFFFu), 1e-30f};
  std::vector<std::unique_ptr<CompactTables>> tables;
  for (float beta : betas) tables.push_back(std::make_unique<CompactTables>(beta));
  for (InstructionSet set :
       {InstructionSet::kAvx2, InstructionSet::kAvx512, InstructionSet::kAvx512Vbmi}) {
    if (!Supported(set)) {
      std::printf("this CPU has no %s\n", Name(set));
      continue;
    }
    for (uint32_t flush : {0u, 0x8040u}) {  // FTZ and DAZ
      _mm_setcsr((_mm_getcsr() & ~0x8040u) | flush);
      Random random(flush + 1);
      for (int round = 0; round < 1200; ++round) {
        const MadamPlan plan = RandomPlan(&random, tables, betas);
        const Gradients kind = static_cast<Gradients>(random.Below(4));
        const int64_t n = round < 200 ? round : 500 + random.Below(200);
        const uint64_t index =
            round % 3 == 0 ? random.Below(1000) : 64 * random.Below(99);
        if (plan.format.bits <= 8) {
          Compare<int8_t>(set, plan, kind, n, index, &random);
        } else {
          Compare<int16_t>(set, plan, kind, n, index, &random);
        }
      }
      Millions<int16_t>(set, *tables[0], &random);
      _mm_setcsr(_mm_getcsr() & ~0x8040u);
    }
  }
}

}  // namespace
}  // namespace lns

int main() {
  lns::Run();
  return lns::Report();
}
