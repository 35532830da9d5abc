#include "topk/guess.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace lookalike::detail {
namespace {

// Below this, or where the k best are a larger part of all, a guess saves less than it costs.
constexpr std::size_t kMinScores = std::size_t{1} << 20;
constexpr std::size_t kMinRatio = 4;

// Tells whether `known` is good enough: some microseconds.
constexpr std::size_t kProbes = 128;

// A sample of 64 Ki scores takes somewhat less than 1 ms. It should hold this many of the best k, to guess them within
// 25%.
constexpr std::size_t kMaxSample = std::size_t{1} << 16;
constexpr std::size_t kWanted = 1024;

// At five standard deviations, one guess in some millions is too high. Rows in a regular order could be worse.
constexpr double kDeviations = 5;

// Scores taken together: each read waits for memory, and brings neighbours along.
constexpr std::size_t kTogether = 4;

/// Keys of about `count` scores at random; fewer where rows do not count.
std::vector<Key> sample(std::span<const float> scores, std::uint32_t first_row, const std::uint8_t* skip,
                        std::size_t count) {
  const auto next = [groups = scores.size() / kTogether](std::uint64_t& random) {
    random = random * 6364136223846793005U + 1442695040888963407U;  // Knuth's MMIX; the upper half is good
    return static_cast<std::size_t>(((random >> 32) * groups) >> 32) * kTogether;
  };
  constexpr int kAhead = 64;  // reads under way
  std::uint64_t prefetched = 1;
  for (int i = 0; i < kAhead; ++i) {
    __builtin_prefetch(&scores[next(prefetched)]);
  }
  std::vector<Key> keys;
  keys.reserve(count + kTogether);
  std::uint64_t random = 1;
  for (std::size_t i = 0; i < count; i += kTogether) {
    __builtin_prefetch(&scores[next(prefetched)]);
    const std::size_t place = next(random);
    for (std::size_t j = place; j < place + kTogether; ++j) {
      const auto row = static_cast<std::uint32_t>(first_row + j);
      const bool skipped = skip != nullptr && ((skip[row >> 3] >> (row & 7)) & 1) != 0;
      if (!skipped && !std::isnan(scores[j])) {
        keys.push_back(make_key(scores[j], row));
      }
    }
  }
  return keys;
}

}  // namespace

Key guess_threshold(std::span<const float> scores, std::uint32_t first_row, const std::uint8_t* skip, std::size_t k,
                    Key known) {
  const std::size_t size = scores.size();
  if (k == 0 || size < kMinScores || size / kMinRatio < k) {
    return known;
  }
  const std::vector<Key> probes = sample(scores, first_row, skip, kProbes);
  const auto passing = std::count_if(probes.begin(), probes.end(), [known](Key key) { return key >= known; });
  if (static_cast<std::size_t>(passing) * size <= 2 * k * kProbes) {
    return known;
  }
  const std::size_t wanted = std::min({kMaxSample, kWanted * (size / k), size / 64});
  std::vector<Key> keys = sample(scores, first_row, skip, wanted);
  const double expected = static_cast<double>(wanted) * static_cast<double>(k) / static_cast<double>(size);
  // Of a small expectation, the deviations are those of a Poisson distribution: the square covers its skew.
  const double place = expected + kDeviations * std::sqrt(expected) + kDeviations * kDeviations / 2;
  if (place >= static_cast<double>(keys.size())) {
    return known;
  }
  const auto guess = keys.begin() + static_cast<std::ptrdiff_t>(place);
  std::nth_element(keys.begin(), guess, keys.end(), std::greater<>());
  return std::max(known, *guess);
}

}  // namespace lookalike::detail
