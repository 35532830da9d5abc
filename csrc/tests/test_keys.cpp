// The parts of the selection that work on keys: blocks, their bounds and order, guesses.
#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "oracle.h"
#include "topk/blocks.h"
#include "topk/guess.h"
#include "topk/key.h"
#include "topk/sort.h"

using namespace lookalike::detail;

namespace {

/// Keys of rows 0, 1, ... without NaN, in random order.
std::vector<Key> keys_of(const std::string& distribution, std::size_t size, std::mt19937& random) {
  const auto scores = oracle::scores(distribution, size, random);
  std::vector<Key> keys;
  for (std::uint32_t row = 0; row < size; ++row) {
    if (!std::isnan(scores[row])) {
      keys.push_back(make_key(scores[row], row));
    }
  }
  std::shuffle(keys.begin(), keys.end(), random);
  return keys;
}

Blocks blocks_of(const std::vector<Key>& keys, std::size_t block_size) {
  Blocks blocks;
  for (std::size_t begin = 0; begin < keys.size(); begin += block_size) {
    Block block;
    block.reserve(block_size);
    blocks.add(std::move(block));
    blocks.fill(std::span(keys).subspan(begin, std::min(block_size, keys.size() - begin)));
  }
  return blocks;
}

std::vector<Key> all_of(const Blocks& blocks) {
  std::vector<Key> keys;
  for (const Block& block : blocks.all()) {
    keys.insert(keys.end(), block.begin(), block.end());
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  return keys;
}

// More than what is simply copied and selected from, so that samples are taken.
constexpr std::size_t kMany = 200'000;

}  // namespace

TEST(blocks_find_and_drop_what_sorting_finds) {
  std::mt19937 random(1);
  for (const std::string& distribution : oracle::distributions()) {
    for (const std::size_t size : {std::size_t{100}, kMany}) {
      const auto keys = keys_of(distribution, size, random);
      auto sorted = keys;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      for (const std::size_t rank : {std::size_t{1}, keys.size() / 3, keys.size() / 2, keys.size()}) {
        for (const std::size_t threads : {1U, 3U}) {
          const std::string context = distribution + " rank=" + std::to_string(rank);
          Blocks blocks = blocks_of(keys, 30'000);
          CHECK_EQUAL_IN(blocks.find(rank, threads), sorted[rank - 1], context);

          const Blocks::Dropped dropped = blocks.drop_worst(rank, threads);
          const auto end = std::upper_bound(sorted.begin(), sorted.end(), dropped.bound, std::greater<>());
          const auto kept = static_cast<std::size_t>(end - sorted.begin());
          CHECK_EQUAL_IN(kept >= rank && kept <= rank + 2 + size / 20, true, context);
          CHECK_EQUAL_IN(all_of(blocks) == std::vector<Key>(sorted.begin(), end), true, context);
          CHECK_EQUAL_IN(blocks.size(), kept, context);
          const auto tied =
              std::count_if(end, sorted.end(), [&](Key key) { return rank_of(key) == rank_of(dropped.bound); });
          CHECK_EQUAL_IN(dropped.ties, static_cast<std::uint64_t>(tied), context);
        }
      }
    }
  }
}

TEST(blocks_are_filled_again_after_keys_were_dropped) {
  std::mt19937 random(2);
  const auto keys = keys_of("random", kMany, random);
  Blocks blocks = blocks_of(keys, 30'000);  // the seventh has room for 10,000 more
  blocks.drop_worst(1000, 2);
  const std::size_t room = blocks.room();
  CHECK_EQUAL(room, 210'000 - blocks.size());
  const std::size_t size = blocks.size();
  CHECK_EQUAL(blocks.fill(keys), kMany);
  CHECK_EQUAL(blocks.fill(keys), room - kMany);
  CHECK_EQUAL(blocks.size(), size + room);
  CHECK_EQUAL(blocks.room(), 0U);
}

TEST(sorting_gives_the_best_in_order) {
  std::mt19937 random(3);
  for (std::string distribution : oracle::distributions()) {
    for (const std::size_t size : {std::size_t{1}, std::size_t{1000}, kMany}) {
      auto keys = keys_of(distribution, size, random);
      const Blocks blocks = blocks_of(keys, 30'000);
      std::sort(keys.begin(), keys.end(), std::greater<>());
      for (const std::size_t count : {std::size_t{0}, keys.size() / 3, keys.size()}) {
        for (const std::size_t threads : {1U, 3U}) {
          std::vector<Key> sorted(count);
          sort_best(blocks.all(), count, threads, [&](std::size_t offset, std::span<const Key> part) {
            std::copy(part.begin(), part.end(), sorted.begin() + static_cast<std::ptrdiff_t>(offset));
          });
          CHECK_EQUAL_IN(std::equal(sorted.begin(), sorted.end(), keys.begin()), true,
                         distribution + " size=" + std::to_string(size) + " count=" + std::to_string(count));
        }
      }
    }
  }
}

TEST(sorting_copes_with_keys_that_crowd_where_no_sample_looks) {
  // Each level of the sort sees a few far outliers, and all others in one bucket.
  std::vector<Key> keys;
  for (std::size_t i = 0; i < kMany; ++i) {
    const unsigned level = static_cast<unsigned>(i % 4096 == 0 ? i / 4096 % 8 : 8);
    keys.push_back((Key{1} << (8 * (8 - std::min(level, 7U)) - 1)) + i);
  }
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  const Blocks blocks = blocks_of(keys, keys.size());
  std::vector<Key> sorted(keys.size());
  sort_best(blocks.all(), keys.size(), 2, [&](std::size_t offset, std::span<const Key> part) {
    std::copy(part.begin(), part.end(), sorted.begin() + static_cast<std::ptrdiff_t>(offset));
  });
  CHECK(std::equal(sorted.begin(), sorted.end(), keys.rbegin()));
}

TEST(a_guess_lets_in_somewhat_more_than_k) {
  std::mt19937 random(4);
  constexpr std::size_t kSize = std::size_t{1} << 21;
  for (const char* distribution : {"random", "constant", "up", "down", "few", "clustered", "nan"}) {
    const auto scores = oracle::scores(distribution, kSize, random);
    const auto skip = oracle::skip_bitmap(kSize, 50, random);
    for (const std::size_t k : {std::size_t{20'000}, kSize / 10}) {
      const Key guess = guess_threshold(scores, 7, nullptr, k, kBelowAll);
      std::size_t reaching = 0;
      for (std::uint32_t i = 0; i < kSize; ++i) {
        reaching += !std::isnan(scores[i]) && make_key(scores[i], 7 + i) >= guess ? 1 : 0;
      }
      CHECK_EQUAL_IN(reaching >= k && reaching < 2 * k, true, distribution + std::string(" k=") + std::to_string(k));
      // What holds already is not lowered, and not raised where it lets in no more.
      CHECK_EQUAL(guess_threshold(scores, 7, nullptr, k, guess), guess);
    }
    CHECK(guess_threshold(scores, 0, skip.data(), 20'000, kBelowAll) <
          guess_threshold(scores, 0, nullptr, 20'000, kBelowAll));
  }
}

TEST(few_scores_are_not_guessed_from) {
  const std::vector<float> scores(1000, 1.0F);
  CHECK_EQUAL(guess_threshold(scores, 0, nullptr, 10, kBelowAll), kBelowAll);
  const std::vector<float> more(std::size_t{1} << 21, 1.0F);
  CHECK_EQUAL(guess_threshold(more, 0, nullptr, more.size() / 2, kBelowAll), kBelowAll);
  CHECK_EQUAL(guess_threshold(more, 0, nullptr, 0, kBelowAll), kBelowAll);
}

int main() { return check::run(); }
