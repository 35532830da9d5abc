// The order of rows as one unsigned integer: a higher key is a better row. Keys of different rows differ.
//
// Done on bits, not by float arithmetic: a thread that flushes denormals to zero gets the same keys. The functions are
// static, and use no library function, because kernels compiled for newer processors include this file: a shared
// inline copy built by one of them could end up running on an older processor.
#pragma once

#include <cstdint>

namespace lookalike::detail {

using Key = std::uint64_t;

/// Below every row's key: the threshold that lets all pass.
constexpr Key kBelowAll = 0;

/// Unsigned integers in the order of the scores; -0 counts as +0. Not for NaN.
static constexpr std::uint32_t orderable(float score) noexcept {
  constexpr std::uint32_t kSign = 0x80000000U;
  const auto bits = __builtin_bit_cast(std::uint32_t, score);
  if ((bits & kSign) == 0) {
    return bits | kSign;
  }
  return bits == kSign ? kSign : ~bits;
}

static constexpr float score_of_orderable(std::uint32_t value) noexcept {
  constexpr std::uint32_t kSign = 0x80000000U;
  return __builtin_bit_cast(float, (value & kSign) != 0 ? value & ~kSign : ~value);
}

static constexpr Key make_key(float score, std::uint32_t row) noexcept {
  return (Key{orderable(score)} << 32) | static_cast<std::uint32_t>(~row);
}

/// The score's part of a key: equal for equal scores, higher for higher ones.
static constexpr std::uint32_t rank_of(Key key) noexcept { return static_cast<std::uint32_t>(key >> 32); }
static constexpr std::uint32_t row_of(Key key) noexcept { return ~static_cast<std::uint32_t>(key); }

/// NaN for kBelowAll.
static constexpr float score_of(Key key) noexcept { return score_of_orderable(rank_of(key)); }

}  // namespace lookalike::detail
