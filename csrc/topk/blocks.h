// Keys in blocks of one size: they grow without moving, shrink in place, and can be worked on by several threads.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "lookalike/buffer.h"
#include "topk/key.h"

namespace lookalike::detail {

/// Never grows beyond the capacity it was made with.
using Block = Buffer<Key>;

/// Lends blocks to pushes under way, and bounds what they hold: beyond the bound one push at a time goes on, and the
/// others wait for what is given back. So any number of threads may push.
class BlockPool {
 public:
  /// Blocks of `block_keys` keys, about `bytes` of them at a time.
  BlockPool(std::size_t block_keys, std::size_t bytes);

  /// What one push has borrowed. Not for two threads at once.
  class Loan {
   public:
    explicit Loan(BlockPool& pool) noexcept : pool_(pool) {}
    ~Loan();
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;

    /// An empty block. May wait. Throws std::bad_alloc.
    [[nodiscard]] Block take();
    /// Back for others to use. A block that is kept instead needs no word.
    void give_back(Block&& block) noexcept;

   private:
    BlockPool& pool_;
    std::size_t taken_ = 0;
    bool beyond_ = false;  // this is the one
  };

  /// Frees what was given back: for who needs the memory.
  void trim() noexcept;

 private:
  std::size_t block_keys_;
  std::size_t limit_;
  std::mutex mutex_;
  std::size_t lent_ = 0;
  std::vector<Block> free_;
  bool one_beyond_ = false;  // a push goes beyond the limit
  std::condition_variable changed_;
};

class Blocks {
 public:
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] const std::vector<Block>& all() const noexcept { return blocks_; }

  /// Copies as many of `keys` as there is room for; returns how many.
  std::size_t fill(std::span<const Key> keys) noexcept;

  /// Room in the blocks there are.
  [[nodiscard]] std::size_t room() const noexcept { return capacity_ - size_; }

  /// Makes the next `count` calls of add safe from std::bad_alloc.
  void expect(std::size_t count) { blocks_.reserve(blocks_.size() + count); }
  void add(Block&& block);
  [[nodiscard]] std::vector<Block> release() noexcept;
  void clear() noexcept;

  /// The rank-th highest key, 1 <= rank <= size().
  [[nodiscard]] Key find(std::size_t rank, std::size_t threads) const;

  /// Drops the keys below `bound`. Returns how many of them have its score.
  std::uint64_t drop_below(Key bound, std::size_t threads);

  struct Dropped {
    Key bound;           // every key from here on is kept
    std::uint64_t ties;  // keys dropped that have its score
  };
  /// Drops all but somewhat more than the best `count`, 1 <= count <= size().
  Dropped drop_worst(std::size_t count, std::size_t threads);

 private:
  struct Split {
    std::vector<std::size_t> kept;  // in each block, at its front
    std::size_t size;               // in all
    std::uint64_t ties;             // behind them, with the bound's score
  };
  /// Moves the keys from `bound` on to the front of their blocks.
  [[nodiscard]] Split split_at(Key bound, std::size_t threads);
  void keep(const Split& split) noexcept;

  std::vector<Block> blocks_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
  std::size_t first_with_room_ = 0;
};

}  // namespace lookalike::detail
