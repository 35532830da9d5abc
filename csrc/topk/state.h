// What a TopK is made of. For topk.cpp and push.cpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

#include "lookalike/error.h"
#include "lookalike/topk.h"
#include "topk/blocks.h"
#include "topk/reservoir.h"
#include "topk/sample.h"

namespace lookalike {

namespace detail {

constexpr std::uint64_t kMaxRows = std::uint64_t{1} << 32;

// What pushes may hold apart from the selection: half of what it holds itself, and for many threads with a small k.
constexpr std::size_t kPoolBytes = std::size_t{16} << 20;

inline void check_threads(unsigned threads) {
  if (threads == 0) {
    throw InvalidInput("threads", "threads must be at least 1");
  }
}

struct Counts {
  std::uint64_t seen = 0;
  std::uint64_t skipped = 0;
  std::uint64_t nans = 0;
};

}  // namespace detail

struct TopK::State {
  class Push;

  State(std::uint64_t k_, const TopKOptions& options_, detail::Key threshold)
      : k(k_),
        capped_k(static_cast<std::size_t>(std::min(k_, std::max<std::uint64_t>(options_.num_rows, 1)))),
        options(options_),
        pool(detail::block_keys(capped_k), capped_k * sizeof(detail::Key) + detail::kPoolBytes),
        reservoir(capped_k, threshold),
        sample(options_.num_rows, options_.distribution) {}

  [[nodiscard]] const std::uint8_t* skip() const { return options.skip.empty() ? nullptr : options.skip.data(); }
  /// That `options` can be met. Throws InvalidInput.
  static void check(const TopKOptions& options);
  void check_push(std::uint64_t first_row, std::uint64_t count, const PushOptions& push) const;
  void check_room(std::uint64_t more) const;
  [[noreturn]] void refuse_nan(std::span<const float> scores, std::uint64_t first_row) const;

  const std::uint64_t k;
  const std::size_t capped_k;  // no more than there can be rows, and 0 only where k is
  const TopKOptions options;
  detail::BlockPool pool;
  mutable std::mutex mutex;
  detail::Reservoir reservoir;
  detail::Counts counts;
  detail::Sample sample;  // without the mutex
};

}  // namespace lookalike
