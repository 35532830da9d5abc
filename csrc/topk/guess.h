// A threshold for scores that can be read again if it turns out too high.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "topk/key.h"

namespace lookalike::detail {

/// A key that somewhat more than `k` of the scores most likely reach, by a sample of them; or `known`, a threshold that
/// holds already, where that lets in few enough. NaN and rows in the bitmap `skip` (may be null) do not count.
[[nodiscard]] Key guess_threshold(std::span<const float> scores, std::uint32_t first_row, const std::uint8_t* skip,
                                  std::size_t k, Key known);

}  // namespace lookalike::detail
