#include "topk/scan_impl.h"

namespace lookalike::detail {
namespace {

struct Scalar {
  template <class Predicate>
  static std::uint64_t mask(const float* scores, Predicate predicate) noexcept {
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < kBlock; ++i) {
      bits |= std::uint64_t{predicate(scores[i])} << i;
    }
    return bits;
  }

  static bool any_not_below(const float* scores, float bound) noexcept {
    // Counting is what a compiler turns into vector code.
    std::uint32_t below = 0;
    for (std::size_t i = 0; i < kBlock; ++i) {
      below += scores[i] < bound ? 1U : 0U;
    }
    return below != kBlock;
  }

  static std::uint64_t reached(const float* scores, float bound) noexcept {
    return mask(scores, [bound](float score) { return score >= bound; });
  }

  static bool any_nan(const float* scores) noexcept {
    std::uint32_t nans = 0;
    for (std::size_t i = 0; i < kBlock; ++i) {
      nans += __builtin_isnan(scores[i]) != 0 ? 1U : 0U;
    }
    return nans != 0;
  }

  static std::uint64_t nan(const float* scores) noexcept {
    return mask(scores, [](float score) { return __builtin_isnan(score) != 0; });
  }

  static std::uint64_t equal(const float* scores, std::uint32_t bits) noexcept {
    return mask(scores, [bits](float score) { return __builtin_bit_cast(std::uint32_t, score) == bits; });
  }
};

}  // namespace

void scan_scalar(Scan& scan) noexcept { scan_with<Scalar>(scan); }

}  // namespace lookalike::detail
