// Sorting of keys, best first.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "topk/blocks.h"
#include "topk/key.h"

namespace lookalike::detail {

/// Sorts the best `count` of all keys in `blocks`, which stay as they are. Calls emit(offset, keys) for stretches of
/// the result, in any order and from any of the threads. Allocates 8 bytes for each of little more than `count` keys.
void sort_best(const std::vector<Block>& blocks, std::size_t count, std::size_t threads,
               const std::function<void(std::size_t, std::span<const Key>)>& emit);

}  // namespace lookalike::detail
