#if defined(__x86_64__)

#include <immintrin.h>

#include "topk/scan_impl.h"

namespace lookalike::detail {
namespace {

struct Avx2 {
  static constexpr std::size_t kLanes = 8;

  static std::uint64_t bits(__m256 compared, std::size_t part) noexcept {
    const auto mask = static_cast<std::uint32_t>(_mm256_movemask_ps(compared));
    return std::uint64_t{mask} << (part * kLanes);
  }

  static constexpr std::size_t kParts = kBlock / kLanes;

  /// As in scan_avx512.cpp.
  static __m256 load_in_order(const float* scores) noexcept {
    __m256 values = _mm256_loadu_ps(scores);
    asm volatile("" : "+x"(values));
    return values;
  }

  // As in scan_avx512.cpp, with two chains of operations so that their latency does not count.
  static bool any_not_below(const float* scores, float bound) noexcept {
    __m256 most[2] = {load_in_order(scores), load_in_order(scores + kLanes)};
    __m256 sum[2] = {most[0], most[1]};
    for (std::size_t part = 2; part < kParts; ++part) {
      const __m256 values = load_in_order(scores + part * kLanes);
      most[part % 2] = _mm256_max_ps(most[part % 2], values);
      sum[part % 2] = _mm256_add_ps(sum[part % 2], values);
    }
    const __m256 reached = _mm256_cmp_ps(_mm256_max_ps(most[0], most[1]), _mm256_set1_ps(bound), _CMP_NLT_UQ);
    return _mm256_movemask_ps(_mm256_or_ps(reached, _mm256_cmp_ps(sum[0], sum[1], _CMP_UNORD_Q))) != 0;
  }

  static std::uint64_t reached(const float* scores, float bound) noexcept {
    const __m256 bounds = _mm256_set1_ps(bound);
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kParts; ++part) {
      mask |= bits(_mm256_cmp_ps(_mm256_loadu_ps(scores + part * kLanes), bounds, _CMP_GE_OQ), part);
    }
    return mask;
  }

  static bool any_nan(const float* scores) noexcept {
    __m256 sum = _mm256_loadu_ps(scores);
    for (std::size_t part = 1; part < kParts; ++part) {
      sum = _mm256_add_ps(sum, _mm256_loadu_ps(scores + part * kLanes));
    }
    return _mm256_movemask_ps(_mm256_cmp_ps(sum, sum, _CMP_UNORD_Q)) != 0;
  }

  static std::uint64_t nan(const float* scores) noexcept {
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kParts; ++part) {
      const __m256 values = _mm256_loadu_ps(scores + part * kLanes);
      mask |= bits(_mm256_cmp_ps(values, values, _CMP_UNORD_Q), part);
    }
    return mask;
  }

  static std::uint64_t equal(const float* scores, std::uint32_t wanted) noexcept {
    const __m256i all_wanted = _mm256_set1_epi32(static_cast<int>(wanted));
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kParts; ++part) {
      const __m256i values = _mm256_castps_si256(_mm256_loadu_ps(scores + part * kLanes));
      mask |= bits(_mm256_castsi256_ps(_mm256_cmpeq_epi32(values, all_wanted)), part);
    }
    return mask;
  }
};

}  // namespace

void scan_avx2(Scan& scan) noexcept { scan_with<Avx2>(scan); }

}  // namespace lookalike::detail

#endif
