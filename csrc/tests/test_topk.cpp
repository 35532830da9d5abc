#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "check.h"
#include "lookalike/cpu.h"
#include "lookalike/error.h"
#include "lookalike/topk.h"
#include "oracle.h"
#include "topk/guess.h"
#include "topk/key.h"
#include "topk/reservoir.h"

using lookalike::InvalidInput;
using lookalike::NanPolicy;
using lookalike::TopK;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Runs the body once for each level this machine has.
template <class Body>
void at_every_level(Body body) {
  for (const auto level : lookalike::supported_simd_levels()) {
    lookalike::force_simd_level(level);
    body(std::string(lookalike::name(level)));
  }
  lookalike::reset_simd_level();
}

/// The stretches of 0 .. size, `chunk` long, in random order if `shuffled`.
std::vector<std::pair<std::size_t, std::size_t>> chunks(std::size_t size, std::size_t chunk, bool shuffled,
                                                        std::mt19937& random) {
  std::vector<std::pair<std::size_t, std::size_t>> all;
  for (std::size_t begin = 0; begin < size; begin += chunk) {
    all.emplace_back(begin, std::min(chunk, size - begin));
  }
  if (shuffled) {
    std::shuffle(all.begin(), all.end(), random);
  }
  return all;
}

}  // namespace

TEST(agrees_with_sorting_for_every_distribution_k_and_chunking) {
  at_every_level([](const std::string& level) {
    std::mt19937 random(7);
    for (const std::string& distribution : oracle::distributions()) {
      for (const std::size_t size : {0U, 1U, 63U, 64U, 65U, 3000U, 30000U}) {
        const auto scores = oracle::scores(distribution, size, random);
        const auto skip = size % 2 == 0 ? std::vector<std::uint8_t>{} : oracle::skip_bitmap(size, 20, random);
        for (const std::size_t k : std::vector<std::size_t>{0, 1, 10, 1000, size / 2, size, size + 5}) {
          const auto expected = oracle::select(scores, k, skip);
          for (const std::size_t chunk : {size + 1, std::size_t{4096}, std::size_t{61}}) {
            for (const bool shuffled : {false, true}) {
              TopK top(k, {.num_rows = size, .skip = skip, .nan = NanPolicy::kSkip});
              for (const auto& [begin, count] : chunks(size, chunk, shuffled, random)) {
                top.push({scores.data() + begin, count}, begin);
              }
              oracle::check_same(top, expected, size,
                                 level + ' ' + distribution + " size=" + std::to_string(size) +
                                     " k=" + std::to_string(k) + " chunk=" + std::to_string(chunk));
            }
          }
        }
      }
    }
  });
}

TEST(an_empty_push_selects_nothing_wherever_it_points) {
  const std::vector<float> scores(64, 1.0F);
  at_every_level([&](const std::string& level) {
    for (std::size_t i = 0; i < scores.size(); ++i) {
      TopK top(3);
      top.push({&scores[i], 0}, 0);
      CHECK_EQUAL_IN(top.cutoff().has_value(), false, level);
    }
  });
}

TEST(one_score_at_a_time_in_any_order) {
  std::mt19937 random(11);
  for (const std::string& distribution : oracle::distributions()) {
    const auto scores = oracle::scores(distribution, 20000, random);
    const auto expected = oracle::select(scores, 100);
    TopK top(100, {.nan = NanPolicy::kSkip});
    for (const auto& [row, one] : chunks(scores.size(), 1, true, random)) {
      top.push({&scores[row], one}, row);
    }
    oracle::check_same(top, expected, scores.size(), distribution);
  }
}

TEST(merging_is_like_pushing) {
  std::mt19937 random(13);
  for (const std::string& distribution : oracle::distributions()) {
    const auto scores = oracle::scores(distribution, 40000, random);
    const auto skip = oracle::skip_bitmap(scores.size(), 10, random);
    for (const std::size_t k : {1U, 50U, 5000U, 100000U}) {
      const auto expected = oracle::select(scores, k, skip);
      const lookalike::TopKOptions options{.skip = skip, .nan = NanPolicy::kSkip};
      std::vector<TopK> parts;
      for (int i = 0; i < 5; ++i) {
        parts.emplace_back(k, options);
      }
      for (const auto& [begin, count] : chunks(scores.size(), 777, true, random)) {
        parts[random() % 4].push({scores.data() + begin, count}, begin);  // the fifth stays empty
      }
      parts[0].merge(parts[1]);
      parts[2].merge(parts[3]);
      parts[4].merge(parts[2]);
      parts[4].merge(parts[0]);
      oracle::check_same(parts[4], expected, scores.size(), distribution + " k=" + std::to_string(k));
    }
  }
}

TEST(what_is_saved_is_the_same_however_it_was_pushed) {
  std::mt19937 random(17);
  for (const std::string& distribution : oracle::distributions()) {
    const auto scores = oracle::scores(distribution, 40000, random);
    const auto skip = oracle::skip_bitmap(scores.size(), 10, random);
    for (const std::size_t k : {0U, 1U, 5000U, 100000U}) {
      const std::string context = distribution + " k=" + std::to_string(k);
      const lookalike::TopKOptions options{
          .num_rows = scores.size(), .skip = skip, .nan = NanPolicy::kSkip, .distribution = true};
      TopK whole(k, options);
      whole.push(scores, 0);
      const auto saved = whole.save();

      TopK one(k, options);
      TopK two(k, options);
      for (const auto& [begin, count] : chunks(scores.size(), 777, true, random)) {
        (random() % 2 == 0 ? one : two).push({scores.data() + begin, count}, begin);
      }
      TopK merged = TopK::load(one.save(), options);
      merged.merge(TopK::load(two.save(), options));
      CHECK_EQUAL_IN(merged.save() == saved, true, context);
      oracle::check_same(merged, oracle::select(scores, k, skip), scores.size(), context);
      CHECK_EQUAL_IN(merged.distribution().scores == whole.distribution().scores, true, context);
      CHECK_EQUAL_IN(TopK::load(saved, options).save() == saved, true, context);
    }
  }
}

TEST(a_partial_goes_on_as_the_selection_it_was) {
  std::mt19937 random(18);
  for (const char* distribution : {"random", "constant", "up", "few"}) {
    const auto scores = oracle::scores(distribution, 30000, random);
    TopK first(1000, {.num_rows = scores.size()});
    first.push({scores.data(), 20000}, 0);
    TopK second = TopK::load(first.save(), {.num_rows = scores.size()});
    second.push({scores.data() + 20000, 10000}, 20000);
    oracle::check_same(second, oracle::select(scores, 1000), scores.size(), distribution);
  }
}

TEST(a_partial_is_loaded_with_its_own_options_only) {
  TopK top(3, {.num_rows = 100, .distribution = true});
  top.push(std::vector<float>(10, 1.0F), 0);
  const auto saved = top.save();
  CHECK_THROWS(InvalidInput, "of 100 rows", (void)TopK::load(saved, {.num_rows = 101, .distribution = true}));
  CHECK_THROWS(InvalidInput, "keeps a distribution", (void)TopK::load(saved, {.num_rows = 100}));
  CHECK_THROWS(lookalike::DataCorrupted, "truncated", (void)TopK::load(std::span(saved).first(50), {.num_rows = 100}));
  TopK other(3, {.num_rows = 100});
  CHECK_THROWS(InvalidInput, "distribution", other.merge(top));
  CHECK_THROWS(InvalidInput, "no distribution", (void)other.distribution());
  CHECK_THROWS(InvalidInput, "number of rows", TopK(3, {.distribution = true}));
}

TEST(the_distribution_is_of_the_eligible_rows) {
  const std::vector<float> scores{0.5F, kNan, -0.0F, 3, 1};
  const std::vector<std::uint8_t> skip{0b01000};
  TopK top(1, {.num_rows = 5, .skip = skip, .nan = NanPolicy::kSkip, .distribution = true});
  top.push(scores, 0);
  const lookalike::Distribution distribution = top.distribution();
  CHECK((distribution.scores == lookalike::Buffer<float>{1, 0.5F, 0}));
  CHECK_EQUAL(distribution.population, 3U);
  CHECK_EQUAL(distribution.score_at(1), 1.0F);
  CHECK_EQUAL(distribution.score_at(3), 0.0F);
  CHECK_THROWS(InvalidInput, "no rank 0", (void)(distribution.score_at(0)));
  CHECK_THROWS(InvalidInput, "no rank 4", (void)(distribution.score_at(4)));
}

TEST(a_refused_push_leaves_no_trace_in_the_distribution) {
  std::vector<float> scores(1 << 17, 1.0F);
  TopK top(3, {.num_rows = scores.size(), .distribution = true});
  scores.back() = kNan;
  CHECK_THROWS(InvalidInput, "NaN", top.push(scores, 0));
  CHECK(top.distribution().scores.empty());
  scores.back() = 2;
  top.push(scores, 0);
  CHECK_EQUAL(top.distribution().scores.size(), scores.size());
}

TEST(a_large_push_is_right_whatever_is_guessed_of_it) {
  constexpr std::size_t kSize = (std::size_t{1} << 21) + 77;
  std::mt19937 random(23);
  for (const char* distribution : {"random", "constant", "up", "down", "few", "clustered", "nan", "special"}) {
    const auto scores = oracle::scores(distribution, kSize, random);
    const auto skip = oracle::skip_bitmap(kSize, 30, random);
    for (const std::size_t k : {std::size_t{1}, std::size_t{3000}, kSize / 8}) {
      const auto expected = oracle::select(scores, k, skip);
      for (const unsigned threads : {1U, 3U}) {
        TopK top(k, {.num_rows = kSize, .skip = skip, .nan = NanPolicy::kSkip});
        top.push(scores, 0, {.threads = threads});
        oracle::check_same(top, expected, kSize, distribution + std::string(" k=") + std::to_string(k));
      }
    }
  }
}

TEST(a_hostile_order_of_very_many_scores) {
  // Ascending, so that more enter than a push for a small k puts up with.
  std::vector<float> scores((std::size_t{1} << 22) + 5);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    scores[i] = static_cast<float>(i / 3);
  }
  const auto expected = oracle::select(scores, 100);
  for (const unsigned threads : {1U, 3U}) {
    TopK top(100, {.num_rows = scores.size(), .distribution = true});
    top.push(scores, 0, {.threads = threads});
    oracle::check_same(top, expected, scores.size(), "");
    CHECK_EQUAL(top.distribution().scores.size(), scores.size());
  }
}

TEST(a_guess_that_is_too_high_is_noticed) {
  // High scores just where the guess looks (see guess.cpp), and far too few of them.
  constexpr std::size_t kSize = std::size_t{1} << 21;
  std::mt19937 random(29);
  auto scores = oracle::scores("random", kSize, random);
  std::uint64_t number = 1;
  for (int i = 0; i < 1 << 14; ++i) {
    number = number * 6364136223846793005U + 1442695040888963407U;
    const std::size_t place = (((number >> 32) * (kSize / 4)) >> 32) * 4;
    for (std::size_t j = place; j < place + 4; ++j) {
      scores[j] += scores[j] < 50 ? 100.0F : 0.0F;
    }
  }
  constexpr std::size_t kK = 100'000;
  const lookalike::detail::Key guess =
      lookalike::detail::guess_threshold(scores, 0, nullptr, kK, lookalike::detail::kBelowAll);
  CHECK(lookalike::detail::score_of(guess) > 50);
  const auto expected = oracle::select(scores, kK);
  TopK top(kK, {.num_rows = kSize, .distribution = true});
  top.push(scores, 0, {.threads = 2});
  oracle::check_same(top, expected, kSize, "");
  CHECK_EQUAL(top.distribution().scores.size(), kSize);
}

TEST(a_merge_leaves_its_source_as_it_was) {
  const std::vector<float> scores{3, 1, 2};
  TopK one(2);
  TopK two(2);
  one.push(scores, 0);
  two.push(scores, 3);
  one.merge(two);
  CHECK((two.finish().rows == lookalike::Buffer<std::uint32_t>{3, 5}));
  CHECK((one.finish().rows == lookalike::Buffer<std::uint32_t>{0, 3}));
  CHECK_EQUAL(two.rows_seen(), 3U);
  CHECK_THROWS(InvalidInput, "into itself", one.merge(one));
  TopK other(3);
  CHECK_THROWS(InvalidInput, "same k", one.merge(other));
}

TEST(an_empty_shard_changes_nothing) {
  const std::vector<float> scores{3, 1, 2, 9};
  TopK empty(2, {.num_rows = 0});
  CHECK(empty.finish().rows.empty());
  TopK top(2, {.num_rows = 4});
  top.merge(empty);
  top.push({scores.data(), 2}, 0);
  top.merge(TopK::load(empty.save(), {.num_rows = 0}));
  top.push({scores.data() + 2, 2}, 2);
  oracle::check_same(top, oracle::select(scores, 2), 4, "");
}

TEST(a_row_pushed_twice_is_not_saved) {
  const std::vector<float> scores{3, 1};
  TopK top(3);
  top.push(scores, 5);
  top.push(scores, 5);
  CHECK_THROWS(InvalidInput, "row 5 was pushed or merged twice", (void)top.save());
}

TEST(more_may_be_pushed_after_finish) {
  std::mt19937 random(17);
  const auto scores = oracle::scores("few", 20000, random);
  TopK top(500);
  for (const auto& [begin, count] : chunks(scores.size(), 1000, false, random)) {
    top.push({scores.data() + begin, count}, begin);
    const std::vector<float> so_far(scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(begin + count));
    oracle::check_same(top, oracle::select(so_far, 500), so_far.size(), "up to " + std::to_string(begin + count));
  }
}

TEST(nan_is_refused_and_nothing_is_kept) {
  at_every_level([](const std::string& level) {
    for (const std::size_t position : {std::size_t{0}, std::size_t{63}, std::size_t{70'000}, std::size_t{199'999}}) {
      std::vector<float> scores(200'000, 1.0F);
      TopK top(10);
      const std::vector<float> first{0.5F, 0.25F};
      top.push(first, 0);
      scores[position] = kNan;
      CHECK_THROWS(InvalidInput, "row " + std::to_string(position + 2) + " is NaN", top.push(scores, 2));
      CHECK_EQUAL_IN(top.rows_seen(), 2U, level);
      CHECK((top.finish().rows == lookalike::Buffer<std::uint32_t>{0, 1}));
      scores[position] = 2.0F;
      top.push(scores, 2);
      CHECK_EQUAL_IN(top.finish().rows.front(), position + 2, level);
    }
  });
}

TEST(nan_of_a_skipped_row_is_not_looked_at) {
  at_every_level([](const std::string& level) {
    std::vector<float> scores(100, 1.0F);
    scores[77] = kNan;
    std::vector<std::uint8_t> skip(13);
    skip[77 / 8] = 1U << (77 % 8);
    TopK top(3, {.num_rows = 100, .skip = skip});
    top.push(scores, 0);
    CHECK_EQUAL_IN(top.nan_count(), 0U, level);
    CHECK_EQUAL_IN(top.rows_skipped(), 1U, level);
  });
}

TEST(an_abandoned_push_leaves_nothing) {
  const std::vector<float> scores(std::size_t{1} << 22, 1.0F);
  TopK top(1 << 20);
  top.push({scores.data(), 3}, 0);
  const auto poll = [] { throw std::runtime_error("enough"); };
  CHECK_THROWS(std::runtime_error, "enough", top.push({scores.data() + 3, scores.size() - 3}, 3, {.poll = poll}));
  CHECK_EQUAL(top.rows_seen(), 3U);
  CHECK((top.finish().rows == lookalike::Buffer<std::uint32_t>{0, 1, 2}));
}

TEST(rows_at_the_far_end) {
  constexpr std::uint64_t kEnd = std::uint64_t{1} << 32;
  at_every_level([](const std::string& level) {
    const std::vector<float> scores{1, 3, 2};
    TopK top(2);
    top.push(scores, kEnd - 3);
    CHECK_EQUAL_IN(top.finish().rows.front(), 0xFFFFFFFEU, level);
    CHECK_THROWS(InvalidInput, "split the pool", top.push(scores, kEnd - 2));
    CHECK_THROWS(InvalidInput, "split the pool", top.push(scores, ~std::uint64_t{0}));
  });
  CHECK_THROWS(InvalidInput, "split the pool", TopK(1, {.num_rows = kEnd + 1}));
}

TEST(wrong_arguments) {
  const std::vector<float> scores{1, 2, 3};
  const std::vector<std::uint8_t> skip(1);
  CHECK_THROWS(InvalidInput, "at least 1", TopK(1).push(scores, 0, {.threads = 0}));
  CHECK_THROWS(InvalidInput, "announced by num_rows", TopK(1, {.num_rows = 3}).push(scores, 1));
  CHECK_THROWS(InvalidInput, "bitmap has 1 bytes", TopK(1, {.num_rows = 9, .skip = skip}));
  CHECK_THROWS(InvalidInput, "covers 8 rows", TopK(1, {.skip = skip}).push(scores, 6));
  TopK twice(1, {.num_rows = 4, .distribution = true});
  twice.push(scores, 0);
  CHECK_THROWS(InvalidInput, "push every row once", twice.push(scores, 0));
  CHECK_EQUAL(twice.rows_seen(), 3U);
  CHECK_EQUAL(twice.distribution().scores.size(), 3U);
}

TEST(a_huge_k_costs_nothing) {
  const std::vector<float> scores{1, 3, 2};
  TopK top(~std::uint64_t{0});
  top.push(scores, 0);
  CHECK((top.finish().rows == lookalike::Buffer<std::uint32_t>{1, 2, 0}));
}

TEST(ties_at_a_threshold_that_has_risen_since_do_not_count) {
  using namespace lookalike::detail;
  Reservoir reservoir(1, kBelowAll);
  const auto fill = [&](float score, std::uint32_t first_row) {
    std::vector<Key> keys;
    for (std::uint32_t row = first_row; row < first_row + 5000; ++row) {
      keys.push_back(make_key(score, row));
    }
    reservoir.append(keys, kBelowAll, 0, 1);
    return reservoir.threshold();
  };
  const Key low = fill(1, 0);
  CHECK_EQUAL(score_of(low), 1.0F);
  reservoir.append({}, low, 7, 1);
  CHECK_EQUAL(reservoir.cutoff(1)->tied, 5007U);
  const Key high = fill(2, 5000);
  CHECK_EQUAL(score_of(high), 2.0F);
  reservoir.append({}, low, 9, 1);  // from a thread that has not heard of it
  CHECK_EQUAL(reservoir.cutoff(1)->tied, 5000U);
}

#if defined(__SSE2__)
TEST(denormals_count_where_the_thread_flushes_them) {
  constexpr unsigned kFlushAndDenormalsAreZero = 0x8040;
  std::mt19937 random(19);
  const auto scores = oracle::scores("denormals", 20000, random);
  const auto expected = oracle::select(scores, 5000);
  at_every_level([&](const std::string& level) {
    TopK top(5000);
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | kFlushAndDenormalsAreZero);
    for (const auto& [begin, count] : chunks(scores.size(), 1000, false, random)) {
      top.push({scores.data() + begin, count}, begin);
    }
    _mm_setcsr(before);
    oracle::check_same(top, expected, scores.size(), level);
  });
}
#endif

TEST(keys_are_in_the_order_of_scores_and_rows) {
  using namespace lookalike::detail;
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  const std::vector<float> ascending{-kInf, -2, -1, -kTiny, 0, kTiny, 1, 2, kInf};
  for (std::size_t i = 0; i < ascending.size(); ++i) {
    const Key key = make_key(ascending[i], 5);
    CHECK_EQUAL(score_of(key), ascending[i]);
    CHECK_EQUAL(row_of(key), 5U);
    CHECK(key > kBelowAll);
    CHECK(key > make_key(ascending[i], 6));
    CHECK(i == 0 || make_key(ascending[i], 0xFFFFFFFFU) > make_key(ascending[i - 1], 0));
  }
  CHECK_EQUAL(make_key(-0.0F, 1), make_key(0.0F, 1));
}

int main() { return check::run(); }
