#include "bench/verify.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "bench/scores.h"
#include "cpu/parallel.h"

namespace lookalike::bench {
namespace {

constexpr std::size_t kStretch = std::size_t{1} << 20;  // rows a thread looks at before it takes others

bool is_skipped(std::span<const std::uint8_t> skip, std::size_t row) {
  return !skip.empty() && ((skip[row / 8] >> (row % 8)) & 1) != 0;
}

struct Counts {
  std::uint64_t eligible = 0;   // rows not skipped
  std::uint64_t not_after = 0;  // of these, the row selected last and all better ones
};

Counts count(std::span<const float> scores, std::span<const std::uint8_t> skip, float last, std::uint32_t last_row,
             unsigned threads) {
  std::atomic<std::uint64_t> eligible{0};
  std::atomic<std::uint64_t> not_after{0};
  const auto one = [&](std::size_t i) {
    Counts counts;
    for (std::size_t row = i * kStretch; row < std::min(scores.size(), (i + 1) * kStretch); ++row) {
      const bool selectable = !is_skipped(skip, row);
      const bool better = scores[row] > last || (scores[row] == last && row <= last_row);
      counts.eligible += selectable ? 1 : 0;
      counts.not_after += selectable && better ? 1 : 0;
    }
    eligible += counts.eligible;
    not_after += counts.not_after;
    return true;
  };
  detail::parallel_for((scores.size() + kStretch - 1) / kStretch, threads, one, {});
  return {eligible, not_after};
}

/// Each row strictly after the one before it, with its own score, and not skipped. So no row is there twice, and it is
/// the selection exactly if it holds as many rows as are not after its last one.
void prove(const Selection& selection, std::span<const float> scores, std::uint64_t k,
           std::span<const std::uint8_t> skip, unsigned threads) {
  const std::size_t size = selection.rows.size();
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint32_t row = selection.rows[i];
    if (row >= scores.size() || is_skipped(skip, row) || selection.scores[i] != scores[row]) {
      throw WrongResult("row " + std::to_string(row) + " is not in the pool, or to be skipped, or of another score");
    }
    const bool ordered = i == 0 || selection.scores[i - 1] > selection.scores[i] ||
                         (selection.scores[i - 1] == selection.scores[i] && selection.rows[i - 1] < row);
    if (!ordered) {
      throw WrongResult("place " + std::to_string(i) + " is out of order");
    }
  }
  const float last = size == 0 ? 0 : selection.scores.back();
  const std::uint32_t last_row = size == 0 ? 0 : selection.rows.back();
  const Counts counts = count(scores, skip, last, last_row, threads);
  if (size != std::min(k, counts.eligible)) {
    throw WrongResult(std::to_string(size) + " rows were selected, of " + std::to_string(counts.eligible) +
                      " eligible");
  }
  if (size != 0 && counts.not_after != size) {
    throw WrongResult("better rows are missing: " + std::to_string(counts.not_after) + " are not after the last");
  }
}

}  // namespace

void Verifier::check(const std::string& problem, const Selection& selection, std::span<const float> scores,
                     std::uint64_t k, std::span<const std::uint8_t> skip, unsigned threads) {
  if (selection.rows.size() != selection.scores.size()) {
    throw WrongResult("there are not as many rows as scores");
  }
  const std::uint64_t sum = checksum(selection);
  const auto known = checksums_.find(problem);
  if (known == checksums_.end()) {
    prove(selection, scores, k, skip, threads);
    checksums_.emplace(problem, sum);
  } else if (known->second != sum) {
    throw WrongResult("other rows, or in another order, than an earlier case selected of the same scores");
  }
}

std::uint64_t Verifier::checksum(const Selection& selection) {
  std::uint64_t sum = selection.rows.size();
  for (const std::uint32_t row : selection.rows) {
    sum = random_at(sum ^ row);
  }
  return sum;
}

}  // namespace lookalike::bench
