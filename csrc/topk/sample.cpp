#include "topk/sample.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <string>
#include <utility>

#include "lookalike/error.h"
#include "topk/key.h"

namespace lookalike {
namespace detail {
namespace {

// By Dvoretzky, Kiefer and Wolfowitz, so many independent scores place every quantile within 0.1% but for one chance in
// ten million; one from each stretch does better. Where stretches round up to two or three rows there are fewer, but
// then half or a third of all rows are known.
constexpr std::uint64_t kScores = std::uint64_t{1} << 23;

using Shared = std::atomic_ref<std::uint32_t>;

std::uint32_t load(const std::uint32_t& rank) noexcept {
  return Shared(const_cast<std::uint32_t&>(rank)).load(std::memory_order_relaxed);
}

/// Descending, by counting eleven bits at a time.
void sort(Buffer<std::uint32_t>& values) {
  constexpr unsigned kDigit = 11;
  constexpr std::uint32_t kMask = (1U << kDigit) - 1;
  Buffer<std::uint32_t> scratch(values.size());
  std::array<std::uint32_t, kMask + 1> places;
  for (unsigned shift = 0; shift < 32; shift += kDigit) {
    places.fill(0);
    for (const std::uint32_t value : values) {
      ++places[(~value >> shift) & kMask];
    }
    std::uint32_t place = 0;
    for (std::uint32_t& next : places) {
      place += std::exchange(next, place);
    }
    for (const std::uint32_t value : values) {
      scratch[places[(~value >> shift) & kMask]++] = value;
    }
    values.swap(scratch);
  }
}

}  // namespace

Sample::Sample(std::uint64_t num_rows, bool wanted) : stride_(wanted ? stride_for(num_rows) : 0) {
  if (wanted) {
    ranks_.assign((num_rows + stride_ - 1) / stride_, 0);
  }
}

std::uint64_t Sample::stride_for(std::uint64_t num_rows) noexcept {
  return std::max<std::uint64_t>(1, (num_rows + kScores - 1) / kScores);
}

Buffer<std::uint32_t> Sample::ranks() const {
  Buffer<std::uint32_t> ranks(ranks_.size());
  std::transform(ranks_.begin(), ranks_.end(), ranks.begin(), load);
  return ranks;
}

// The finalizer of MurmurHash3, scaled to the stretch: rows in a regular order must not meet a regular choice.
std::uint64_t Sample::row_of_stretch(std::uint64_t stretch) const noexcept {
  auto hash = static_cast<std::uint32_t>(stretch + 1);
  hash ^= hash >> 16;
  hash *= 0x85EBCA6BU;
  hash ^= hash >> 13;
  hash *= 0xC2B2AE35U;
  hash ^= hash >> 16;
  return stretch * stride_ + ((hash * stride_) >> 32);
}

/// visit(stretch, row) for each stretch whose row is among the given ones.
template <class Visit>
void Sample::for_each(std::uint64_t first_row, std::uint64_t count, Visit visit) noexcept {
  if (stride_ == 0 || count == 0) {
    return;
  }
  const std::uint64_t last = (first_row + count - 1) / stride_;
  for (std::uint64_t stretch = first_row / stride_; stretch <= last; ++stretch) {
    const std::uint64_t row = row_of_stretch(stretch);
    if (row - first_row < count) {  // also false below first_row
      visit(stretch, row);
    }
  }
}

void Sample::record(std::span<const float> scores, std::uint64_t first_row, const std::uint8_t* skip) noexcept {
  for_each(first_row, scores.size(), [&](std::uint64_t stretch, std::uint64_t row) {
    const float score = scores[row - first_row];
    const bool out = __builtin_isnan(score) || (skip != nullptr && ((skip[row >> 3] >> (row & 7)) & 1) != 0);
    Shared(ranks_[stretch]).store(out ? 0 : orderable(score), std::memory_order_relaxed);
  });
}

void Sample::forget(std::uint64_t first_row, std::uint64_t count) noexcept {
  for_each(first_row, count, [&](std::uint64_t stretch, std::uint64_t /*row*/) {
    Shared(ranks_[stretch]).store(0, std::memory_order_relaxed);
  });
}

void Sample::merge(const Sample& other) noexcept {
  for (std::size_t i = 0; i < ranks_.size(); ++i) {
    if (const std::uint32_t rank = load(other.ranks_[i]); rank != 0) {
      Shared(ranks_[i]).store(rank, std::memory_order_relaxed);
    }
  }
}

void Sample::restore(std::span<const std::uint32_t> ranks) noexcept {
  std::copy(ranks.begin(), ranks.end(), ranks_.begin());
}

Buffer<float> Sample::sorted() const {
  Buffer<std::uint32_t> known(ranks_.size());
  std::size_t size = 0;
  for (const std::uint32_t& rank : ranks_) {
    known[size] = load(rank);
    size += known[size] != 0 ? 1 : 0;
  }
  known.resize(size);
  sort(known);
  Buffer<float> scores(size);
  std::transform(known.begin(), known.end(), scores.begin(), score_of_orderable);
  return scores;
}

}  // namespace detail

float Distribution::score_at(std::uint64_t rank) const {
  if (scores.empty() && population > 0) {
    throw InvalidInput("rank", "no score of the sample has been pushed yet: push more rows before asking for ranks");
  }
  if (rank == 0 || rank > population) {
    throw InvalidInput("rank", "there is no rank " + std::to_string(rank) + " among " + std::to_string(population) +
                                   " rows: ranks begin at 1");
  }
  // The sample cuts the population into scores.size() equal parts; the score stands for the middle of its part.
  const double part = (static_cast<double>(rank) - 0.5) / static_cast<double>(population);
  const auto place = static_cast<std::size_t>(part * static_cast<double>(scores.size()));
  return scores[std::min(place, scores.size() - 1)];
}

}  // namespace lookalike
