#include "topk/blocks.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <new>
#include <utility>

#include "cpu/parallel.h"

namespace lookalike::detail {
namespace {

// A sample of 16 Ki keys brackets a rank to 3% of the keys, at four standard deviations, and is sorted in L2.
constexpr std::size_t kSample = std::size_t{1} << 14;
constexpr double kDeviations = 4;

// So many keys of a bracket are copied and selected from, at least; or this share of all, so that memory is bounded.
constexpr std::size_t kFew = std::size_t{1} << 16;
constexpr std::size_t kShare = 8;

/// What lies in the half-open range [low, high) of keys, and above it.
struct Range {
  std::size_t above = 0;
  std::size_t size = 0;
  std::vector<Key> inside;  // all of it, or nothing where it is too much
};

/// One pass over the keys. Those inside are kept where they are no more than `limit`.
Range look(const std::vector<Block>& blocks, Key low, Key high, std::size_t limit, std::size_t threads) {
  Range range;
  std::mutex mutex;
  const auto look_at = [&](std::size_t i) {
    const std::span<const Key> block = blocks[i];
    std::array<Key, 512> part;
    Range found;
    for (std::size_t begin = 0; begin < block.size(); begin += part.size()) {
      std::size_t size = 0;
      for (const Key key : block.subspan(begin, std::min(part.size(), block.size() - begin))) {
        // Without branches: they would be as good as random.
        part[size] = key;
        size += static_cast<std::size_t>(key >= low) & static_cast<std::size_t>(key < high);
        found.above += key >= high ? 1 : 0;
      }
      found.size += size;
      if (found.size <= limit) {
        found.inside.insert(found.inside.end(), part.begin(), part.begin() + size);
      }
    }
    const std::lock_guard lock(mutex);
    range.above += found.above;
    range.size += found.size;
    if (range.size <= limit) {
      range.inside.insert(range.inside.end(), found.inside.begin(), found.inside.end());
    }
    return true;
  };
  parallel_for(blocks.size(), threads, look_at, {});
  return range;
}

/// Every stride-th key or so, best first; the exact places do not matter, only that no order of the keys favours some.
std::vector<Key> sample(const std::vector<Block>& blocks, std::size_t size) {
  const std::size_t stride = std::max<std::size_t>(1, size / kSample);
  std::vector<Key> keys;
  keys.reserve(size / stride + 1);
  std::size_t begin = 0;  // of the block, among all keys
  std::size_t next = 0;
  std::uint64_t random = 1;
  for (const Block& block : blocks) {
    for (; next < begin + block.size(); next += stride) {
      random = random * 6364136223846793005U + 1442695040888963407U;
      keys.push_back(block[std::min(next - begin + (random >> 33) % stride, block.size() - 1)]);
    }
    begin += block.size();
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  return keys;
}

}  // namespace

BlockPool::BlockPool(std::size_t block_keys, std::size_t bytes)
    : block_keys_(block_keys), limit_(std::max<std::size_t>(1, bytes / (block_keys * sizeof(Key)))) {}

void BlockPool::trim() noexcept {
  const std::lock_guard lock(mutex_);
  free_.clear();
}

Block BlockPool::Loan::take() {
  std::unique_lock lock(pool_.mutex_);
  pool_.changed_.wait(lock, [this] { return beyond_ || pool_.lent_ < pool_.limit_ || !pool_.one_beyond_; });
  if (pool_.lent_ >= pool_.limit_ && !beyond_) {
    beyond_ = pool_.one_beyond_ = true;
  }
  Block block;
  if (!pool_.free_.empty()) {
    block = std::move(pool_.free_.back());
    pool_.free_.pop_back();
  } else {
    block.reserve(pool_.block_keys_);
  }
  ++pool_.lent_;
  ++taken_;
  return block;
}

void BlockPool::Loan::give_back(Block&& block) noexcept {
  block.clear();
  const std::lock_guard lock(pool_.mutex_);
  --pool_.lent_;
  --taken_;
  if (pool_.free_.size() + pool_.lent_ < pool_.limit_) {
    try {
      pool_.free_.push_back(std::move(block));
    } catch (const std::bad_alloc&) {
      // Then it is freed.
    }
  }
  pool_.changed_.notify_all();
}

BlockPool::Loan::~Loan() {
  if (taken_ == 0 && !beyond_) {
    return;
  }
  const std::lock_guard lock(pool_.mutex_);
  pool_.lent_ -= taken_;
  pool_.one_beyond_ = pool_.one_beyond_ && !beyond_;
  pool_.changed_.notify_all();
}

std::size_t Blocks::fill(std::span<const Key> keys) noexcept {
  std::size_t filled = 0;
  while (filled < keys.size() && first_with_room_ < blocks_.size()) {
    Block& block = blocks_[first_with_room_];
    const std::size_t old_size = block.size();
    const std::size_t count = std::min(keys.size() - filled, block.capacity() - old_size);
    if (count == 0) {
      ++first_with_room_;
      continue;
    }
    block.resize(old_size + count);
    std::memcpy(block.data() + old_size, keys.data() + filled, count * sizeof(Key));
    filled += count;
  }
  size_ += filled;
  return filled;
}

void Blocks::add(Block&& block) {
  size_ += block.size();
  capacity_ += block.capacity();
  blocks_.push_back(std::move(block));
}

std::vector<Block> Blocks::release() noexcept {
  size_ = capacity_ = first_with_room_ = 0;
  return std::exchange(blocks_, {});
}

void Blocks::clear() noexcept {
  for (Block& block : blocks_) {
    block.clear();
  }
  size_ = first_with_room_ = 0;
}

// A sample brackets the key, and one pass over all keys counts those above the bracket and picks out those inside.
// Where the sample misleads, bisection of the bracket that the counts leave open goes on: at most 64 passes.
Key Blocks::find(std::size_t rank, std::size_t threads) const {
  const std::vector<Key> some = size_ <= kFew ? std::vector<Key>{} : sample(blocks_, size_);
  const auto place = static_cast<double>(rank) * static_cast<double>(some.size()) / static_cast<double>(size_);
  const double margin = kDeviations * std::sqrt(static_cast<double>(some.size())) / 2 + 1;
  Key open_low = 0;
  Key open_high = ~Key{0};  // above every key
  Key low = place + margin < static_cast<double>(some.size()) ? some[static_cast<std::size_t>(place + margin)] : 0;
  Key high = place - margin >= 0 ? some[static_cast<std::size_t>(place - margin)] : open_high;
  for (;;) {
    Range range = look(blocks_, low, high, std::max(kFew, size_ / kShare), threads);
    if (rank <= range.above) {
      open_low = high;
    } else if (rank > range.above + range.size) {
      open_high = low;
    } else if (range.inside.size() == range.size) {
      const auto found = range.inside.begin() + static_cast<std::ptrdiff_t>(rank - range.above - 1);
      std::nth_element(range.inside.begin(), found, range.inside.end(), std::greater<>());
      return *found;
    } else if (high - low == 1) {
      return low;  // a row that was pushed very many times
    } else {
      open_low = low;
      open_high = high;
    }
    low = open_low + (open_high - open_low) / 2;
    high = open_high;
  }
}

std::uint64_t Blocks::drop_below(Key bound, std::size_t threads) {
  const Split split = split_at(bound, threads);
  keep(split);
  return split.ties;
}

// A bound that a sample puts a little below the count-th key does, if the count is right: one pass, where finding the
// very key takes two.
Blocks::Dropped Blocks::drop_worst(std::size_t count, std::size_t threads) {
  if (size_ > kFew) {
    const std::vector<Key> some = sample(blocks_, size_);
    const auto share = static_cast<double>(some.size()) / static_cast<double>(size_);
    const double margin = kDeviations * std::sqrt(static_cast<double>(some.size())) / 2 + 1;
    const auto place = static_cast<std::size_t>(static_cast<double>(count) * share + margin);
    if (place < some.size()) {
      const Split split = split_at(some[place], threads);
      if (split.size >= count && split.size <= count + size_ / kShare) {
        keep(split);
        return {some[place], split.ties};
      }
    }
  }
  const Key bound = find(count, threads);
  return {bound, drop_below(bound, threads)};
}

Blocks::Split Blocks::split_at(Key bound, std::size_t threads) {
  const Key first_tied = Key{rank_of(bound)} << 32;
  Split split{std::vector<std::size_t>(blocks_.size()), 0, 0};
  std::atomic<std::size_t> size{0};
  std::atomic<std::uint64_t> ties{0};
  const auto split_block = [&](std::size_t i) {
    Block& block = blocks_[i];
    std::size_t kept = 0;
    std::size_t as_good = 0;
    for (Key& key : block) {  // without a branch, which would be as good as random
      const Key value = key;
      key = block[kept];
      block[kept] = value;
      kept += value >= bound ? 1 : 0;
      as_good += value >= first_tied ? 1 : 0;
    }
    split.kept[i] = kept;
    size += kept;
    ties += as_good - kept;
    return true;
  };
  parallel_for(blocks_.size(), threads, split_block, {});
  split.size = size;
  split.ties = ties;
  return split;
}

void Blocks::keep(const Split& split) noexcept {
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].resize(split.kept[i]);
  }
  size_ = split.size;
  first_with_room_ = 0;
}

}  // namespace lookalike::detail
