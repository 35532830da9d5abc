#include "topk/reservoir.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace lookalike::detail {
namespace {

// Nothing passes it but row 0 with +inf, which k = 0 discards.
constexpr Key kAboveAll = make_key(std::numeric_limits<float>::infinity(), 0);

// Room for a second k makes a compaction, which costs a few passes over the keys, pay for k keys that came in. With a
// small k it would come every few keys: 4,096 of them (32 KiB) fit in L1.
constexpr std::size_t kMinRoom = 4096;

}  // namespace

Reservoir::Reservoir(std::size_t k, Key threshold)
    : k_(k), capacity_(k + std::max(k, kMinRoom)), threshold_(k == 0 ? kAboveAll : threshold) {}

void Reservoir::append(std::span<const Key> keys, Key seen, std::uint64_t ties) {
  const std::lock_guard lock(mutex_);
  reserve(keys.size());
  if (rank_of(seen) == rank_of(threshold())) {
    ties_ += ties;
  }
  insert(keys);
}

void Reservoir::merge(const Reservoir& other) {
  reserve(other.keys_.size());
  raise(other.threshold(), other.ties_);
  insert(other.keys_);
}

void Reservoir::merge(Reservoir&& other) {
  if (!keys_.empty()) {
    merge(static_cast<const Reservoir&>(other));
    return;
  }
  raise(other.threshold(), other.ties_);
  keys_.swap(other.keys_);
}

Selection Reservoir::select(bool sorted) {
  if (keys_.size() > k_) {
    compact();
  }
  if (sorted) {
    std::sort(keys_.begin(), keys_.end(), std::greater<>());
  }
  Selection selection{std::vector<std::uint32_t>(keys_.size()), std::vector<float>(keys_.size())};
  std::transform(keys_.begin(), keys_.end(), selection.rows.begin(), row_of);
  std::transform(keys_.begin(), keys_.end(), selection.scores.begin(), score_of);
  return selection;
}

std::optional<Cutoff> Reservoir::cutoff() {
  if (keys_.size() > k_) {
    compact();
  }
  if (keys_.empty()) {
    return std::nullopt;
  }
  const Key last = *std::min_element(keys_.begin(), keys_.end());
  const auto selected = static_cast<std::uint64_t>(
      std::count_if(keys_.begin(), keys_.end(), [last](Key key) { return rank_of(key) == rank_of(last); }));
  const std::uint64_t left_out = rank_of(last) == rank_of(threshold()) ? ties_ : 0;
  return Cutoff{score_of(last), selected + left_out, selected};
}

// Makes room for `more` keys, of which those over the capacity will find some by compaction. Doubles, so that a
// reservoir that stays small costs little.
void Reservoir::reserve(std::size_t more) {
  const std::size_t wanted = std::min(capacity_, keys_.size() + more);
  if (wanted > keys_.capacity()) {
    keys_.reserve(std::min(capacity_, std::max(wanted, 2 * keys_.capacity())));
  }
}

void Reservoir::insert(std::span<const Key> keys) {
  for (const Key key : keys) {
    if (key >= threshold()) {
      keys_.push_back(key);
      if (keys_.size() == capacity_) {
        compact();
      }
    } else if (rank_of(key) == rank_of(threshold())) {
      ++ties_;
    }
  }
}

void Reservoir::raise(Key threshold, std::uint64_t ties) noexcept {
  if (rank_of(threshold) > rank_of(this->threshold())) {
    ties_ = ties;
  } else if (rank_of(threshold) == rank_of(this->threshold())) {
    ties_ += ties;
  }
  threshold_.store(std::max(threshold, this->threshold()), std::memory_order_relaxed);
}

// Keeps the best k of more than k keys.
void Reservoir::compact() noexcept {
  if (k_ == 0) {
    keys_.clear();
    return;
  }
  const auto last = keys_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
  std::nth_element(keys_.begin(), last, keys_.end(), std::greater<>());
  const Key kept = *last;
  const auto ties = static_cast<std::uint64_t>(
      std::count_if(last + 1, keys_.end(), [kept](Key key) { return rank_of(key) == rank_of(kept); }));
  keys_.erase(last + 1, keys_.end());
  // Keys that came by a merge may have been below the threshold: then it stays where it is.
  raise(kept, ties);
}

}  // namespace lookalike::detail
