#include "lookalike/topk.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

#include "lookalike/error.h"
#include "topk/partial.h"
#include "topk/state.h"

namespace lookalike {

using detail::Counts;
using detail::Key;
using detail::kMaxRows;
using detail::Sample;

void TopK::State::check(const TopKOptions& options) {
  if (options.num_rows > kMaxRows) {
    throw InvalidInput("num_rows", std::to_string(options.num_rows) + " rows are more than the " +
                                       std::to_string(kMaxRows) + " a selection can hold: split the pool");
  }
  const bool known = options.num_rows != kMaxRows;
  if (options.distribution && !known) {
    throw InvalidInput("num_rows", "a distribution wants the number of rows: it says how many scores to keep");
  }
  if (known && !options.skip.empty() && options.skip.size() < (options.num_rows + 7) / 8) {
    throw InvalidInput("skip", "the skip bitmap has " + std::to_string(options.skip.size()) + " bytes and " +
                                   std::to_string(options.num_rows) + " rows need " +
                                   std::to_string((options.num_rows + 7) / 8));
  }
}

TopK::TopK(std::uint64_t k, const TopKOptions& options) {
  State::check(options);
  state_ = std::make_unique<State>(k, options, detail::kBelowAll);
}

TopK::TopK(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}

TopK::~TopK() = default;
TopK::TopK(TopK&&) noexcept = default;
TopK& TopK::operator=(TopK&&) noexcept = default;

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
  if (source.options.num_rows > state.options.num_rows) {
    throw InvalidInput("other", "it may hold rows up to " + std::to_string(source.options.num_rows - 1) +
                                    ", and here there are " + std::to_string(state.options.num_rows) +
                                    ": make both with the same num_rows");
  }
  if (state.sample.stride() != source.sample.stride() ||
      (state.sample.wanted() && state.options.num_rows != source.options.num_rows)) {
    throw InvalidInput("other",
                       "only one of the two keeps a distribution, or they are of another num_rows: make both alike");
  }
  const std::scoped_lock lock(state.mutex, source.mutex);
  state.check_room(source.counts.seen);
  state.reservoir.merge(source.reservoir, 1);
  state.sample.merge(source.sample);
  state.counts.seen += source.counts.seen;
  state.counts.skipped += source.counts.skipped;
  state.counts.nans += source.counts.nans;
}

Selection TopK::finish(bool sorted, unsigned threads) {
  detail::check_threads(threads);
  const std::lock_guard lock(state_->mutex);
  state_->pool.trim();
  return state_->reservoir.select(sorted, threads);
}

std::optional<Cutoff> TopK::cutoff() {
  const std::lock_guard lock(state_->mutex);
  return state_->reservoir.cutoff(1);
}

Distribution TopK::distribution() const {
  if (!state_->sample.wanted()) {
    throw InvalidInput("distribution", "no distribution is kept: ask for it by the option when the selection is made");
  }
  const std::lock_guard lock(state_->mutex);
  const Counts& counts = state_->counts;
  return {state_->sample.sorted(), counts.seen - counts.skipped - counts.nans};
}

std::vector<std::byte> TopK::save() {
  const std::lock_guard lock(state_->mutex);
  state_->pool.trim();
  const Buffer<Key> keys = state_->reservoir.best(1);
  if (const auto twice = std::ranges::adjacent_find(keys); twice != keys.end()) {
    throw InvalidInput("scores",
                       "row " + std::to_string(detail::row_of(*twice)) +
                           " was pushed or merged twice, so this cannot be gone on with: push every row once");
  }
  const auto cutoff = state_->reservoir.cutoff(1);
  const Buffer<std::uint32_t> sample = state_->sample.ranks();
  const Counts& counts = state_->counts;
  return detail::encode({
      .k = state_->k,
      .num_rows = state_->options.num_rows,
      .rows_seen = counts.seen,
      .rows_skipped = counts.skipped,
      .nans = counts.nans,
      .tied_out = cutoff ? cutoff->tied - cutoff->selected : 0,
      .keys = keys,
      .stride = state_->sample.stride(),
      .sample = sample,
  });
}

TopK TopK::load(std::span<const std::byte> partial, const TopKOptions& options) {
  const detail::Partial saved = detail::decode(partial);
  if (options.num_rows != saved.num_rows) {
    throw InvalidInput("num_rows", "the partial is of " + std::to_string(saved.num_rows) + " rows and not " +
                                       std::to_string(options.num_rows) +
                                       ": load it with the options it was made with");
  }
  if (options.distribution != (saved.stride != 0)) {
    throw InvalidInput("distribution", std::string("the partial ") + (saved.stride != 0 ? "keeps a" : "keeps no") +
                                           " distribution: load it with the options it was made with");
  }
  if (saved.stride != 0 && saved.stride != Sample::stride_for(saved.num_rows)) {
    throw DataCorrupted("partial", "its distribution keeps one score of " + std::to_string(saved.stride) +
                                       " rows and not of " + std::to_string(Sample::stride_for(saved.num_rows)) +
                                       ": save it anew");
  }
  State::check(options);
  const bool full = saved.k > 0 && saved.keys.size() == saved.k;
  const Key threshold = full ? saved.keys.back() : detail::kBelowAll;
  auto state = std::make_unique<State>(saved.k, options, threshold);
  state->reservoir.append(saved.keys, threshold, saved.tied_out, 1);
  state->counts = {saved.rows_seen, saved.rows_skipped, saved.nans};
  state->sample.restore(saved.sample);
  return TopK(std::move(state));
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
