#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>

#include "cpu/parallel.h"
#include "lookalike/error.h"
#include "topk/guess.h"
#include "topk/scans.h"
#include "topk/state.h"

namespace lookalike {

using detail::BlockPool;
using detail::Key;
using detail::kMaxRows;
using detail::Reservoir;
using detail::Scan;

namespace {

// 256 KiB of scores lie in L2 while all is noted of them.
constexpr std::size_t kSlice = std::size_t{1} << 16;

// Slices that a thread takes at once: 4 MiB, some 100 us. Fewer, and what was prefetched beyond the end costs; more,
// and a poll waits. But eight times for each thread, so that threads end together.
constexpr std::size_t kMaxSlices = 16;
constexpr std::size_t kTurns = 8;

// For so small a k, hardly more keys enter than a guess would cost, unless the order is hostile: then so many do.
constexpr std::size_t kSmallK = std::size_t{1} << 14;
constexpr std::size_t kHostile = std::size_t{1} << 20;

// A thread takes some 50 us to start, and reads this many scores in some 300.
constexpr std::size_t kMinScoresPerThread = std::size_t{1} << 20;

// 16 KiB of stack; the reservoir's lock is taken once for as many keys.
constexpr std::size_t kStaged = 2048;

bool is_skipped(std::span<const std::uint8_t> skip, std::uint64_t row) {
  return !skip.empty() && ((skip[row >> 3] >> (row & 7)) & 1) != 0;
}

/// Without the instruction, which not every processor has; a compiler makes vector code of it.
constexpr std::uint64_t count_bits(std::uint64_t word) {
  word -= (word >> 1) & 0x5555555555555555U;
  word = (word & 0x3333333333333333U) + ((word >> 2) & 0x3333333333333333U);
  word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0FU;
  word += word >> 8;
  word += word >> 16;
  word += word >> 32;
  return word & 0x7F;
}

/// How many of the rows first .. last - 1 are in the bitmap.
std::uint64_t count_skipped(std::span<const std::uint8_t> skip, std::uint64_t first, std::uint64_t last) {
  std::uint64_t count = 0;
  if (skip.empty()) {
    return 0;
  }
  for (; first < last && first % 8 != 0; ++first) {
    count += is_skipped(skip, first) ? 1 : 0;
  }
  const std::uint8_t* bytes = skip.data() + (first >> 3);
  const std::size_t words = (last - first) / 64;
  for (std::size_t i = 0; i < words; ++i) {
    std::uint64_t word;
    std::memcpy(&word, bytes + 8 * i, sizeof word);
    count += count_bits(word);
  }
  for (first += 64 * words; first < last; ++first) {
    count += is_skipped(skip, first) ? 1 : 0;
  }
  return count;
}

}  // namespace

void TopK::State::check_push(std::uint64_t first_row, std::uint64_t count, const PushOptions& push) const {
  detail::check_threads(push.threads);
  const std::uint64_t limit = options.num_rows;
  if (first_row > limit || count > limit - first_row) {
    throw InvalidInput("first_row", std::to_string(count) + " scores from row " + std::to_string(first_row) +
                                        " on go beyond the " + std::to_string(limit) +
                                        (limit == kMaxRows ? " rows a selection can hold: split the pool"
                                                           : " rows announced by num_rows"));
  }
  if (!options.skip.empty() && first_row + count > options.skip.size() * 8) {
    throw InvalidInput("skip", "the skip bitmap covers " + std::to_string(options.skip.size() * 8) +
                                   " rows and the scores go up to row " + std::to_string(first_row + count - 1) +
                                   ": give it a bit for every row");
  }
}

void TopK::State::check_room(std::uint64_t more) const {
  if (more > options.num_rows - counts.seen) {
    throw InvalidInput("scores", std::to_string(counts.seen) + " of " + std::to_string(options.num_rows) +
                                     " rows were pushed already and " + std::to_string(more) +
                                     " more came: push every row once");
  }
}

void TopK::State::refuse_nan(std::span<const float> scores, std::uint64_t first_row) const {
  std::uint64_t row = first_row;
  for (const float score : scores) {
    if (std::isnan(score) && !is_skipped(options.skip, row)) {
      break;
    }
    ++row;
  }
  throw InvalidInput("scores", "the score of row " + std::to_string(row) +
                                   " is NaN: mend the model, or choose to skip such rows (they are counted)");
}

/// One push. It collects in a reservoir of its own, which is handed over at the end: so that NaN, found as the scores
/// are read once, or an abandoned push, leaves no trace.
class TopK::State::Push {
 public:
  Push(State& state, std::span<const float> scores, std::uint64_t first_row, const PushOptions& options)
      : state_(state),
        scores_(scores),
        first_row_(first_row),
        options_(options),
        threads_(std::min<std::size_t>(options.threads, 1 + scores.size() / kMinScoresPerThread)),
        scan_(detail::choose(detail::kScans)),
        loan_(state.pool) {}

  ~Push() {
    if (!done_) {
      state_.sample.forget(first_row_, scores_.size());
    }
  }
  Push(const Push&) = delete;
  Push& operator=(const Push&) = delete;

  void run() {
    if (scores_.size() <= kSlice) {
      run_small();
      return;
    }
    const Key known = state_.reservoir.threshold();
    if (state_.capped_k < kSmallK && collect(known, kHostile)) {
      return;
    }
    const Key guess =
        detail::guess_threshold(scores_, static_cast<std::uint32_t>(first_row_), state_.skip(), state_.capped_k, known);
    if (!collect(guess)) {
      collect(known);
    }
  }

 private:
  /// A push that is over before others would notice: what enters mostly fits on the stack.
  void run_small() {
    std::array<Key, kStaged> staged;
    Scan scan = scan_of(scores_, first_row_, staged, state_.reservoir.threshold());
    scan_(scan);
    if (scan.position == scores_.size()) {
      account(scores_, first_row_, scan.nans);
      commit([&] {
        if (scan.num_keys > 0 || scan.ties > 0) {
          state_.reservoir.append({staged.data(), scan.num_keys}, scan.threshold, scan.ties, threads_);
        }
      });
      return;
    }
    Reservoir found(state_.capped_k, scan.threshold, &loan_);
    std::mutex lock;
    drain(scan, found, lock);
    account(scores_, first_row_, scan.nans);
    commit([&] { state_.reservoir.merge(std::move(found), threads_); });
  }

  /// Collects what reaches the threshold. False, and nothing is done, if more keys than `limit` do, or fewer than k
  /// where the threshold was only guessed.
  bool collect(Key threshold, std::size_t limit = std::numeric_limits<std::size_t>::max()) {
    Reservoir found(state_.capped_k, threshold, &loan_);
    std::mutex lock;
    skipped_ = nans_ = entered_ = 0;
    const std::size_t slices = (scores_.size() + kSlice - 1) / kSlice;
    const std::size_t at_once = std::clamp<std::size_t>(slices / (threads_ * kTurns), 1, kMaxSlices);
    const auto collect_some = [&](std::size_t task) {
      const std::size_t end = std::min((task + 1) * at_once * kSlice, scores_.size());
      for (std::size_t begin = task * at_once * kSlice; begin < end; begin += kSlice) {
        collect_slice(begin, std::min(kSlice, end - begin), found, lock);
      }
      return entered_ <= limit && !refused();
    };
    detail::parallel_for((slices + at_once - 1) / at_once, threads_, collect_some, options_.poll);
    const bool guessed = threshold > state_.reservoir.threshold();
    if (!refused() && (entered_ > limit || (guessed && !found.full()))) {
      found.discard();
      return false;
    }
    commit([&] { state_.reservoir.merge(std::move(found), threads_); });
    return true;
  }

  void collect_slice(std::size_t begin, std::size_t count, Reservoir& found, std::mutex& lock) {
    std::array<Key, kStaged> staged;
    const auto part = scores_.subspan(begin, count);
    Scan scan = scan_of(part, first_row_ + begin, staged, found.threshold());
    scan_(scan);
    drain(scan, found, lock);
    account(part, first_row_ + begin, scan.nans);
  }

  /// Hands over what the scan has found, and scans on to the end.
  void drain(Scan& scan, Reservoir& found, std::mutex& lock) {
    for (;;) {
      if (scan.num_keys > 0 || scan.ties > 0) {
        const std::lock_guard locked(lock);
        found.append({scan.keys, scan.num_keys}, scan.threshold, scan.ties, threads_);
        entered_ += scan.num_keys;
      }
      if (scan.position == scan.size) {
        return;
      }
      scan.num_keys = 0;
      scan.ties = 0;
      scan.threshold = found.threshold();
      scan_(scan);
    }
  }

  /// What there is to note of scores that were scanned, while they are in the cache.
  void account(std::span<const float> scores, std::uint64_t first_row, std::uint64_t nans) {
    state_.sample.record(scores, first_row, state_.skip());
    skipped_ += count_skipped(state_.options.skip, first_row, first_row + scores.size());
    nans_ += nans;
  }

  Scan scan_of(std::span<const float> scores, std::uint64_t first_row, std::span<Key> staged, Key threshold) const {
    return {scores.data(), scores.size(), static_cast<std::uint32_t>(first_row), state_.skip(), threshold,
            staged.data(), staged.size()};
  }

  [[nodiscard]] bool refused() const { return nans_ > 0 && state_.options.nan == NanPolicy::kRaise; }

  template <class HandOver>
  void commit(HandOver hand_over) {
    if (refused()) {
      state_.refuse_nan(scores_, first_row_);
    }
    const std::lock_guard lock(state_.mutex);
    state_.check_room(scores_.size());
    hand_over();
    state_.counts.seen += scores_.size();
    state_.counts.skipped += skipped_;
    state_.counts.nans += nans_;
    done_ = true;
  }

  State& state_;
  std::span<const float> scores_;
  std::uint64_t first_row_;
  const PushOptions& options_;
  std::size_t threads_;
  detail::ScanFunction scan_;
  BlockPool::Loan loan_;
  std::atomic<std::uint64_t> skipped_{0};
  std::atomic<std::uint64_t> nans_{0};
  std::atomic<std::size_t> entered_{0};
  bool done_ = false;
};

void TopK::push(std::span<const float> scores, std::uint64_t first_row, const PushOptions& options) {
  state_->check_push(first_row, scores.size(), options);
  {
    // At the door; and once more when all is collected, as others push meanwhile.
    const std::lock_guard lock(state_->mutex);
    state_->check_room(scores.size());
  }
  State::Push(*state_, scores, first_row, options).run();
}

}  // namespace lookalike
