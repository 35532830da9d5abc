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

  static std::uint64_t not_below(const float* scores, float bound) noexcept {
    const __m256 bounds = _mm256_set1_ps(bound);
    __m256 compared[kBlock / kLanes];
    __m256 any = _mm256_setzero_ps();
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
      compared[part] = _mm256_cmp_ps(_mm256_loadu_ps(scores + part * kLanes), bounds, _CMP_NLT_UQ);
      any = _mm256_or_ps(any, compared[part]);
    }
    if (_mm256_testz_ps(any, any) != 0) {
      return 0;
    }
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
      mask |= bits(compared[part], part);
    }
    return mask;
  }

  static std::uint64_t nan(const float* scores) noexcept {
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
      const __m256 values = _mm256_loadu_ps(scores + part * kLanes);
      mask |= bits(_mm256_cmp_ps(values, values, _CMP_UNORD_Q), part);
    }
    return mask;
  }

  static std::uint64_t equal(const float* scores, std::uint32_t wanted) noexcept {
    const __m256i all_wanted = _mm256_set1_epi32(static_cast<int>(wanted));
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
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
