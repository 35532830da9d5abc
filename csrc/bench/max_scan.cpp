// Compiled with -march=native, hence alone and without library functions: an inline one, built here for this machine,
// could be the copy that the linker keeps for all.
#include "bench/max_scan.h"

namespace lookalike::bench {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t kVectorBytes = 64;
#elif defined(__AVX__)
constexpr std::size_t kVectorBytes = 32;
#else
constexpr std::size_t kVectorBytes = 16;
#endif

using Vector = float __attribute__((vector_size(kVectorBytes)));
using Unaligned = float __attribute__((vector_size(kVectorBytes), aligned(sizeof(float)), may_alias));

constexpr std::size_t kLanes = kVectorBytes / sizeof(float);
// A maximum takes up to four cycles and two start in each: eight under way keep it off the critical path.
constexpr std::size_t kAccumulators = 8;
constexpr std::size_t kStep = kAccumulators * kLanes;

}  // namespace

float max_kernel(const float* scores, std::size_t size) noexcept {
  Vector best[kAccumulators];
  for (Vector& vector : best) {
    vector = Vector{} + scores[0];
  }
  std::size_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    for (std::size_t j = 0; j < kAccumulators; ++j) {
      const Vector next = *reinterpret_cast<const Unaligned*>(scores + i + j * kLanes);
      best[j] = next > best[j] ? next : best[j];
    }
  }
  float highest = scores[0];
  for (const Vector& vector : best) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      highest = vector[lane] > highest ? vector[lane] : highest;
    }
  }
  for (; i < size; ++i) {
    highest = scores[i] > highest ? scores[i] : highest;
  }
  return highest;
}

}  // namespace lookalike::bench
