// The keys that may still be among the best k, a threshold below which none is, and the exact count of ties at it.
//
// Invariants, by which the count of ties is exact in one pass, whatever the order:
//   * k keys at or above the threshold have been seen (or the threshold is still the one given at the start);
//   * every key turned away or discarded has at most the threshold's score;
//   * ties_ is how many of those have exactly the threshold's score. When the score of the threshold rises, none of
//     them has: the count starts again at zero.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "lookalike/topk.h"
#include "topk/blocks.h"
#include "topk/key.h"

namespace lookalike::detail {

/// Keys in a block of a reservoir for k. A push on a thread of its own holds at least a block, so it is a small share
/// of the reservoir, up to a huge page.
[[nodiscard]] std::size_t block_keys(std::size_t k) noexcept;

/// `threshold` may be called from any thread at any time; the rest wants the reservoir for itself. `threads` is how
/// many a compaction may use.
class Reservoir {
 public:
  /// `threshold`: a key that k keys known elsewhere reach. Blocks come from `loan`, or from the heap if it is null.
  Reservoir(std::size_t k, Key threshold, BlockPool::Loan* loan = nullptr);

  [[nodiscard]] Key threshold() const noexcept { return threshold_.load(std::memory_order_relaxed); }

  /// Whether k keys at or above the threshold are in here, whatever it was at the start.
  [[nodiscard]] bool full() const noexcept { return keys_.size() >= k_; }

  /// Takes `keys`. `ties` keys with exactly the score of `seen`, a threshold read earlier, were turned away by it.
  /// Strong guarantee.
  void append(std::span<const Key> keys, Key seen, std::uint64_t ties, std::size_t threads);

  /// Takes all that `other` holds; strong guarantee.
  void merge(const Reservoir& other, std::size_t threads);
  void merge(Reservoir&& other, std::size_t threads);

  /// Gives its blocks back to the loan; holds nothing any more.
  void discard() noexcept;

  /// The best k; more may come in afterwards.
  [[nodiscard]] Selection select(bool sorted, std::size_t threads);
  [[nodiscard]] std::optional<Cutoff> cutoff(std::size_t threads);
  /// The keys of the best k, best first.
  [[nodiscard]] Buffer<Key> best(std::size_t threads);

 private:
  void make_room(std::size_t count);
  void raise(Key threshold, std::uint64_t ties) noexcept;
  void compact_if_due(std::size_t threads) noexcept;
  void compact(std::size_t threads) noexcept;  // to somewhat more than the best k
  void trim(std::size_t threads);              // to the best k

  std::size_t k_;
  std::size_t capacity_;
  BlockPool::Loan* loan_;
  // Read without a lock, where a stale value only lets too much in.
  std::atomic<Key> threshold_;
  std::uint64_t ties_ = 0;
  Blocks keys_;
};

}  // namespace lookalike::detail
