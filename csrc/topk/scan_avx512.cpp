#if defined(__x86_64__)

#include <immintrin.h>

#include "topk/scan_impl.h"

namespace lookalike::detail {
namespace {

struct Avx512 {
  static constexpr std::size_t kLanes = 16;

  static std::uint64_t bits(__mmask16 compared, std::size_t part) noexcept {
    return std::uint64_t{compared} << (part * kLanes);
  }

  static std::uint64_t not_below(const float* scores, float bound) noexcept {
    const __m512 bounds = _mm512_set1_ps(bound);
    __mmask16 compared[kBlock / kLanes];
    __mmask16 any = 0;
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
      compared[part] = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + part * kLanes), bounds, _CMP_NLT_UQ);
      any = _mm512_kor(any, compared[part]);
    }
    if (any == 0) {  // one move out of the mask registers instead of four
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
      const __m512 values = _mm512_loadu_ps(scores + part * kLanes);
      mask |= bits(_mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), part);
    }
    return mask;
  }

  static std::uint64_t equal(const float* scores, std::uint32_t wanted) noexcept {
    const __m512i all_wanted = _mm512_set1_epi32(static_cast<int>(wanted));
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
      const __m512i values = _mm512_castps_si512(_mm512_loadu_ps(scores + part * kLanes));
      mask |= bits(_mm512_cmpeq_epi32_mask(values, all_wanted), part);
    }
    return mask;
  }
};

}  // namespace

void scan_avx512(Scan& scan) noexcept { scan_with<Avx512>(scan); }

}  // namespace lookalike::detail

#endif
