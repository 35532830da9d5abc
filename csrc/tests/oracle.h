// What a selection must be, by sorting everything; and the scores it is tried on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "lookalike/topk.h"

namespace oracle {

struct Expected {
  lookalike::Buffer<std::uint32_t> rows;
  lookalike::Buffer<float> scores;
  std::uint64_t skipped = 0;
  std::uint64_t nans = 0;
  std::uint64_t tied = 0;
};

inline bool is_skipped(const std::vector<std::uint8_t>& skip, std::size_t row) {
  return !skip.empty() && ((skip[row / 8] >> (row % 8)) & 1) != 0;
}

/// `scores` are those of rows 0, 1, ...
inline Expected select(const std::vector<float>& scores, std::size_t k, const std::vector<std::uint8_t>& skip = {}) {
  Expected expected;
  lookalike::Buffer<std::uint32_t> rows;
  for (std::uint32_t row = 0; row < scores.size(); ++row) {
    if (is_skipped(skip, row)) {
      ++expected.skipped;
    } else if (std::isnan(scores[row])) {
      ++expected.nans;
    } else {
      rows.push_back(row);
    }
  }
  const lookalike::Buffer<std::uint32_t> eligible = rows;
  std::stable_sort(rows.begin(), rows.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
  rows.resize(std::min(k, rows.size()));
  for (const std::uint32_t row : rows) {
    expected.scores.push_back(scores[row] + 0.0F);
  }
  if (!rows.empty()) {
    const float last = expected.scores.back();
    expected.tied = static_cast<std::uint64_t>(
        std::count_if(eligible.begin(), eligible.end(), [&](auto row) { return scores[row] == last; }));
  }
  expected.rows = std::move(rows);
  return expected;
}

inline void check_same(lookalike::TopK& top, const Expected& expected, std::size_t num_rows,
                       const std::string& context) {
  // Before finish, whose compaction could hide a mistake in the count.
  const auto cutoff = top.cutoff();
  CHECK_EQUAL_IN(cutoff.has_value(), !expected.rows.empty(), context);
  if (cutoff) {
    CHECK_EQUAL_IN(cutoff->score, expected.scores.back(), context);
    CHECK_EQUAL_IN(cutoff->tied, expected.tied, context);
    CHECK_EQUAL_IN(
        cutoff->selected,
        static_cast<std::uint64_t>(std::count(expected.scores.begin(), expected.scores.end(), cutoff->score)), context);
    CHECK(!(top.threshold() > cutoff->score));
  }
  lookalike::Selection unsorted = top.finish(false);
  std::sort(unsorted.rows.begin(), unsorted.rows.end());
  lookalike::Buffer<std::uint32_t> rows = expected.rows;
  std::sort(rows.begin(), rows.end());
  CHECK_EQUAL_IN(unsorted.rows == rows, true, context);

  const lookalike::Selection sorted = top.finish();
  CHECK_EQUAL_IN(sorted.rows == expected.rows, true, context);
  CHECK_EQUAL_IN(sorted.scores == expected.scores, true, context);
  CHECK_EQUAL_IN(std::none_of(sorted.scores.begin(), sorted.scores.end(),
                              [](float score) { return score == 0 && std::signbit(score); }),
                 true, context);
  CHECK_EQUAL_IN(top.rows_seen(), num_rows, context);
  CHECK_EQUAL_IN(top.rows_skipped(), expected.skipped, context);
  CHECK_EQUAL_IN(top.nan_count(), expected.nans, context);
}

inline const std::vector<std::string>& distributions() {
  static const std::vector<std::string> all{"random",    "constant", "up",  "down",    "few",
                                            "clustered", "last",     "nan", "special", "denormals"};
  return all;
}

inline std::vector<float> scores(const std::string& distribution, std::size_t size, std::mt19937& random) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  std::uniform_real_distribution<float> uniform(0, 1);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) {
    if (distribution == "random" || distribution == "up" || distribution == "down") {
      value = normal(random);
    } else if (distribution == "few") {
      value = static_cast<float>(random() % 5) - 2;
    } else if (distribution == "clustered") {
      value = 1 / (1 + std::exp(-6 - normal(random) / 10));
    } else if (distribution == "nan") {
      value = random() % 3 == 0 ? std::numeric_limits<float>::quiet_NaN() : normal(random);
    } else if (distribution == "special") {
      constexpr float kValues[] = {0.0F, -0.0F, kInf, -kInf, 1.0F, -1.0F, kTiny, -kTiny};
      value = kValues[random() % std::size(kValues)];
    } else if (distribution == "denormals") {
      value = (static_cast<float>(random() % 9) - 4) * kTiny;
    } else {
      value = 0.25F;
    }
  }
  if (distribution == "up") {
    std::sort(values.begin(), values.end());
  } else if (distribution == "down") {
    std::sort(values.begin(), values.end(), std::greater<>());
  } else if (distribution == "last" && size > 0) {
    values.back() = 0.5F;
  }
  return values;
}

inline std::vector<std::uint8_t> skip_bitmap(std::size_t rows, unsigned percent, std::mt19937& random) {
  std::vector<std::uint8_t> bitmap((rows + 7) / 8);
  for (std::size_t row = 0; row < rows; ++row) {
    if (random() % 100 < percent) {
      bitmap[row / 8] = static_cast<std::uint8_t>(bitmap[row / 8] | (1U << (row % 8)));
    }
  }
  return bitmap;
}

}  // namespace oracle
