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
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "lookalike/topk.h"
#include "topk/key.h"

namespace lookalike::detail {

/// `threshold` and `append` may be called from any thread at once; the rest wants the reservoir for itself.
class Reservoir {
 public:
  /// `threshold`: a key that k keys known elsewhere reach.
  Reservoir(std::size_t k, Key threshold);

  [[nodiscard]] Key threshold() const noexcept { return threshold_.load(std::memory_order_relaxed); }

  /// Takes `keys`. `ties` keys with exactly the score of `seen`, a threshold read earlier, were turned away by it.
  void append(std::span<const Key> keys, Key seen, std::uint64_t ties);

  /// Takes all that `other` holds; strong guarantee.
  void merge(const Reservoir& other);
  void merge(Reservoir&& other);

  /// The best k, discarding the rest.
  [[nodiscard]] Selection select(bool sorted);
  [[nodiscard]] std::optional<Cutoff> cutoff();

 private:
  void reserve(std::size_t more);
  void insert(std::span<const Key> keys);
  void raise(Key threshold, std::uint64_t ties) noexcept;
  void compact() noexcept;

  std::size_t k_;
  std::size_t capacity_;
  std::mutex mutex_;
  // Written under the mutex; read without it, where a stale value only lets too much in.
  std::atomic<Key> threshold_;
  std::uint64_t ties_ = 0;
  std::vector<Key> keys_;
};

}  // namespace lookalike::detail
