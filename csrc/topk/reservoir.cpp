#include "topk/reservoir.h"

#include <algorithm>
#include <array>
#include <limits>
#include <new>
#include <utility>

#include "cpu/parallel.h"
#include "topk/sort.h"

namespace lookalike::detail {
namespace {

// Nothing passes it but row 0 with +inf, which k = 0 discards.
constexpr Key kAboveAll = make_key(std::numeric_limits<float>::infinity(), 0);

// Room for a second k makes a compaction, which costs a few passes over the keys, pay for k keys that came in. With a
// small k it would come every few keys: 4,096 of them (32 KiB) fit in L1.
constexpr std::size_t kMinRoom = 4096;

constexpr std::size_t kMaxBlock = (std::size_t{2} << 20) / sizeof(Key);  // a huge page

// Blocks in a reservoir that has 2 k keys: enough for threads to share, and for what is not full to matter little.
constexpr std::size_t kBlocks = 64;

void write(std::span<const Key> keys, std::uint32_t* rows, float* scores) noexcept {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    rows[i] = row_of(keys[i]);
    scores[i] = score_of(keys[i]);
  }
}

}  // namespace

std::size_t block_keys(std::size_t k) noexcept { return std::clamp(2 * (k / kBlocks), kMinRoom, kMaxBlock); }

Reservoir::Reservoir(std::size_t k, Key threshold, BlockPool::Loan* loan)
    : k_(k), capacity_(k + std::max(k, kMinRoom)), loan_(loan), threshold_(k == 0 ? kAboveAll : threshold) {}

void Reservoir::append(std::span<const Key> keys, Key seen, std::uint64_t ties, std::size_t threads) {
  make_room(keys.size());
  if (rank_of(seen) == rank_of(threshold())) {
    ties_ += ties;
  }
  keys_.fill(keys);
  compact_if_due(threads);
}

void Reservoir::merge(const Reservoir& other, std::size_t threads) {
  if (keys_.size() + other.keys_.size() > capacity_) {
    compact(threads);
  }
  make_room(other.keys_.size());
  raise(other.threshold(), other.ties_);
  const Key bound = threshold();
  std::array<Key, 512> part;
  for (const Block& block : other.keys_.all()) {
    for (std::size_t begin = 0; begin < block.size(); begin += part.size()) {
      std::size_t size = 0;
      for (const Key key : std::span(block).subspan(begin, std::min(part.size(), block.size() - begin))) {
        const bool enters = key >= bound;
        part[size] = key;
        size += enters ? 1 : 0;
        ties_ += !enters && rank_of(key) == rank_of(bound) ? 1 : 0;
      }
      keys_.fill(std::span(part).first(size));
    }
  }
  compact_if_due(threads);
}

void Reservoir::merge(Reservoir&& other, std::size_t threads) {
  if (keys_.size() + other.keys_.size() > capacity_) {
    // Both at once would be kept in twice the blocks, for good.
    compact(threads);
    other.compact(threads);
  }
  keys_.expect(other.keys_.all().size());
  raise(other.threshold(), other.ties_);
  for (Block& block : other.keys_.release()) {
    if (keys_.room() < block.size()) {
      keys_.add(std::move(block));
      continue;
    }
    keys_.fill(block);
    if (other.loan_ != nullptr) {
      other.loan_->give_back(std::move(block));
    }
  }
  compact_if_due(threads);
}

void Reservoir::discard() noexcept {
  for (Block& block : keys_.release()) {
    if (loan_ != nullptr) {
      loan_->give_back(std::move(block));
    }
  }
}

Selection Reservoir::select(bool sorted, std::size_t threads) {
  const std::size_t size = std::min(k_, keys_.size());
  Selection selection{Buffer<std::uint32_t>(size), Buffer<float>(size)};
  const auto write_at = [&](std::size_t offset, std::span<const Key> keys) {
    write(keys, selection.rows.data() + offset, selection.scores.data() + offset);
  };
  if (sorted) {
    if (keys_.size() > k_ + k_ / 4) {
      compact(threads);  // sorting takes memory for all that it is given
    }
    sort_best(keys_.all(), size, threads, write_at);
    return selection;
  }
  trim(threads);
  std::size_t offset = 0;
  for (const Block& block : keys_.all()) {
    // A row that was pushed twice may be there twice, beyond k.
    const std::size_t count = std::min(block.size(), size - offset);
    write_at(offset, std::span(block).first(count));
    offset += count;
  }
  return selection;
}

std::optional<Cutoff> Reservoir::cutoff(std::size_t threads) {
  trim(threads);
  if (keys_.size() == 0) {
    return std::nullopt;
  }
  Key last = ~Key{0};
  for (const Block& block : keys_.all()) {
    for (const Key key : block) {
      last = std::min(last, key);
    }
  }
  std::uint64_t selected = 0;
  for (const Block& block : keys_.all()) {
    selected += static_cast<std::uint64_t>(
        std::count_if(block.begin(), block.end(), [last](Key key) { return rank_of(key) == rank_of(last); }));
  }
  const std::uint64_t left_out = rank_of(last) == rank_of(threshold()) ? ties_ : 0;
  return Cutoff{score_of(last), selected + left_out, selected};
}

Buffer<Key> Reservoir::best(std::size_t threads) {
  trim(threads);
  Buffer<Key> keys(std::min(k_, keys_.size()));
  sort_best(keys_.all(), keys.size(), threads, [&](std::size_t offset, std::span<const Key> part) {
    std::copy(part.begin(), part.end(), keys.begin() + static_cast<std::ptrdiff_t>(offset));
  });
  return keys;
}

void Reservoir::make_room(std::size_t count) {
  while (keys_.room() < count) {
    keys_.expect(1);
    if (loan_ != nullptr) {
      keys_.add(loan_->take());
    } else {
      Block block;
      // No larger than what may come, so that a selection that stays small costs little.
      block.reserve(std::min(block_keys(k_), std::max(count, 2 * keys_.size())));
      keys_.add(std::move(block));
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

void Reservoir::compact_if_due(std::size_t threads) noexcept {
  if (keys_.size() >= capacity_) {
    compact(threads);
  }
}

void Reservoir::compact(std::size_t threads) noexcept {
  if (keys_.size() <= k_) {
    return;
  }
  if (k_ == 0) {
    keys_.clear();
    return;
  }
  try {
    const Blocks::Dropped dropped = keys_.drop_worst(k_, threads);
    raise(dropped.bound, dropped.ties);
  } catch (const std::bad_alloc&) {
    // All is in, and still right; the next call tries again.
  }
}

void Reservoir::trim(std::size_t threads) {
  if (keys_.size() <= k_) {
    return;
  }
  if (k_ == 0) {
    keys_.clear();
    return;
  }
  const Key last = keys_.find(k_, threads);
  const std::uint64_t ties = keys_.drop_below(last, threads);
  // Keys that came by a merge may have been below the threshold: then it stays where it is.
  raise(last, ties);
}

}  // namespace lookalike::detail
