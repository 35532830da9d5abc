#include "lookalike/topk.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <mutex>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "lookalike/error.h"
#include "topk/reservoir.h"
#include "topk/scan.h"

namespace lookalike {

using detail::Key;
using detail::Reservoir;
using detail::Scan;

namespace {

constexpr std::uint64_t kMaxRows = std::uint64_t{1} << 32;

// 256 KiB of scores: some 20 us of work, so that threads end together and a poll comes in time.
constexpr std::size_t kSlice = std::size_t{1} << 16;

// A thread takes some 50 us to start, and reads this many scores in some 300.
constexpr std::size_t kMinScoresPerThread = std::size_t{1} << 20;

// 16 KiB of stack; the reservoir's lock is taken once for as many keys.
constexpr std::size_t kStaged = 2048;

constexpr detail::ScanFunction kScans[] = {
    detail::scan_scalar,
#if defined(__x86_64__)
    detail::scan_avx2,
    detail::scan_avx512,
#endif
};

bool is_skipped(std::span<const std::uint8_t> skip, std::uint64_t row) {
  return !skip.empty() && ((skip[row >> 3] >> (row & 7)) & 1) != 0;
}

std::uint64_t count_skipped(std::span<const std::uint8_t> skip, std::uint64_t first, std::uint64_t last) {
  if (skip.empty()) {
    return 0;
  }
  std::uint64_t count = 0;
  for (; first < last && first % 8 != 0; ++first) {
    count += is_skipped(skip, first) ? 1 : 0;
  }
  for (; first + 8 <= last; first += 8) {
    count += static_cast<std::uint64_t>(std::popcount(skip[first >> 3]));
  }
  for (; first < last; ++first) {
    count += is_skipped(skip, first) ? 1 : 0;
  }
  return count;
}

struct Counts {
  std::uint64_t seen = 0;
  std::uint64_t skipped = 0;
  std::uint64_t nans = 0;
};

/// Puts what may enter of one slice into `reservoir`; returns the number of NaN in rows not skipped.
std::uint64_t scan_slice(std::span<const float> scores, std::uint32_t first_row, const std::uint8_t* skip,
                         detail::ScanFunction scan_function, Reservoir& reservoir) {
  std::array<Key, kStaged> staged;
  Scan scan{scores.data(), scores.size(), first_row, skip, reservoir.threshold(), staged.data(), staged.size()};
  for (;;) {
    scan_function(scan);
    if (scan.num_keys > 0 || scan.ties > 0) {
      reservoir.append({staged.data(), scan.num_keys}, scan.threshold, scan.ties);
    }
    if (scan.position == scan.size) {
      return scan.nans;
    }
    scan.num_keys = 0;
    scan.ties = 0;
    scan.threshold = reservoir.threshold();
  }
}

}  // namespace

struct TopK::State {
  State(std::uint64_t k_, const TopKOptions& options_)
      : k(k_),
        options(options_),
        reservoir(static_cast<std::size_t>(std::min(k_, options_.num_rows)), detail::kBelowAll) {}

  void check_push(std::uint64_t first_row, std::uint64_t count, const PushOptions& push) const;
  void check_room(std::uint64_t more) const;
  [[noreturn]] void refuse_nan(std::span<const float> scores, std::uint64_t first_row) const;

  const std::uint64_t k;
  const TopKOptions options;
  mutable std::mutex mutex;
  Reservoir reservoir;
  Counts counts;
};

void TopK::State::check_push(std::uint64_t first_row, std::uint64_t count, const PushOptions& push) const {
  if (push.threads == 0) {
    throw InvalidInput("threads", "threads must be at least 1");
  }
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

TopK::TopK(std::uint64_t k, const TopKOptions& options) {
  if (options.num_rows > kMaxRows) {
    throw InvalidInput("num_rows", std::to_string(options.num_rows) + " rows are more than the " +
                                       std::to_string(kMaxRows) + " a selection can hold: split the pool");
  }
  const bool known = options.num_rows != kMaxRows;
  if (known && !options.skip.empty() && options.skip.size() < (options.num_rows + 7) / 8) {
    throw InvalidInput("skip", "the skip bitmap has " + std::to_string(options.skip.size()) + " bytes and " +
                                   std::to_string(options.num_rows) + " rows need " +
                                   std::to_string((options.num_rows + 7) / 8));
  }
  state_ = std::make_unique<State>(k, options);
}

TopK::~TopK() = default;
TopK::TopK(TopK&&) noexcept = default;
TopK& TopK::operator=(TopK&&) noexcept = default;

// The push works on a reservoir of its own and hands it over at the end: so that NaN, found as the scores are read
// once, or an abandoned push, leaves no trace.
void TopK::push(std::span<const float> scores, std::uint64_t first_row, const PushOptions& options) {
  State& state = *state_;
  state.check_push(first_row, scores.size(), options);
  Reservoir staged(static_cast<std::size_t>(std::min(state.k, state.options.num_rows)), state.reservoir.threshold());
  const std::uint8_t* skip = state.options.skip.empty() ? nullptr : state.options.skip.data();
  const auto scan = detail::choose(kScans);
  std::atomic<std::uint64_t> nans{0};

  const std::size_t slices = (scores.size() + kSlice - 1) / kSlice;
  const std::size_t threads = std::min<std::size_t>(options.threads, 1 + scores.size() / kMinScoresPerThread);
  const auto scan_one = [&](std::size_t slice) {
    const std::size_t begin = slice * kSlice;
    const auto part = scores.subspan(begin, std::min(kSlice, scores.size() - begin));
    nans += scan_slice(part, static_cast<std::uint32_t>(first_row + begin), skip, scan, staged);
    return nans == 0 || state.options.nan == NanPolicy::kSkip;
  };
  detail::parallel_for(slices, threads, scan_one, options.poll);
  if (nans != 0 && state.options.nan == NanPolicy::kRaise) {
    state.refuse_nan(scores, first_row);
  }

  const std::uint64_t skipped = count_skipped(state.options.skip, first_row, first_row + scores.size());
  const std::lock_guard lock(state.mutex);
  state.check_room(scores.size());
  state.reservoir.merge(std::move(staged));
  state.counts.seen += scores.size();
  state.counts.skipped += skipped;
  state.counts.nans += nans;
}

void TopK::merge(const TopK& other) {
  State& state = *state_;
  const State& source = *other.state_;
  if (&state == &source) {
    throw InvalidInput("other", "a selection cannot be merged into itself");
  }
  if (state.k != source.k) {
    throw InvalidInput("other", "its k is " + std::to_string(source.k) + " and not " + std::to_string(state.k) +
                                    ": merge selections of the same k");
  }
  const std::scoped_lock lock(state.mutex, source.mutex);
  state.check_room(source.counts.seen);
  state.reservoir.merge(source.reservoir);
  state.counts.seen += source.counts.seen;
  state.counts.skipped += source.counts.skipped;
  state.counts.nans += source.counts.nans;
}

Selection TopK::finish(bool sorted) {
  const std::lock_guard lock(state_->mutex);
  return state_->reservoir.select(sorted);
}

std::optional<Cutoff> TopK::cutoff() {
  const std::lock_guard lock(state_->mutex);
  return state_->reservoir.cutoff();
}

std::uint64_t TopK::k() const noexcept { return state_->k; }

std::uint64_t TopK::rows_seen() const {
  const std::lock_guard lock(state_->mutex);
  return state_->counts.seen;
}

std::uint64_t TopK::rows_skipped() const {
  const std::lock_guard lock(state_->mutex);
  return state_->counts.skipped;
}

std::uint64_t TopK::nan_count() const {
  const std::lock_guard lock(state_->mutex);
  return state_->counts.nans;
}

float TopK::threshold() const noexcept {
  const Key threshold = state_->reservoir.threshold();
  return threshold == detail::kBelowAll ? -std::numeric_limits<float>::infinity() : detail::score_of(threshold);
}

}  // namespace lookalike
