// What the selection is measured beside: the plain scan, and what one writes with the standard library.
#pragma once

#include <cstdint>
#include <span>

#include "lookalike/topk.h"

namespace lookalike::bench {

/// The highest of at least one score; each thread reads one contiguous part.
[[nodiscard]] float max_scan(std::span<const float> scores, unsigned threads);

/// The same selection as TopK's, sorted, by a std::priority_queue of the k best; one thread, k >= 1.
[[nodiscard]] Selection select_by_heap(std::span<const float> scores, std::size_t k);

/// The same by std::nth_element over 64-bit keys of all rows, 8 bytes each, and a std::sort of the k best; one thread,
/// k >= 1.
[[nodiscard]] Selection select_by_nth_element(std::span<const float> scores, std::size_t k);

}  // namespace lookalike::bench
