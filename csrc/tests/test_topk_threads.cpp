// Threads on one selection: to be run under the thread sanitizer too (LOOKALIKE_SANITIZE=thread).
#include <atomic>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "lookalike/error.h"
#include "lookalike/topk.h"
#include "oracle.h"

using lookalike::NanPolicy;
using lookalike::TopK;

namespace {

template <class Body>
void on_threads(unsigned count, Body body) {
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < count; ++i) {
    threads.emplace_back(body, i);
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

}  // namespace

TEST(threads_that_push_at_once) {
  constexpr std::size_t kRows = 200'000;
  std::mt19937 random(3);
  for (const std::string& distribution : oracle::distributions()) {
    const auto scores = oracle::scores(distribution, kRows, random);
    const auto skip = oracle::skip_bitmap(kRows, 5, random);
    for (const std::size_t k : {10U, 20'000U}) {
      const auto expected = oracle::select(scores, k, skip);
      for (const unsigned threads : {2U, 8U}) {
        TopK top(k, {.num_rows = kRows, .skip = skip, .nan = NanPolicy::kSkip});
        std::atomic<std::size_t> next{0};
        std::atomic<bool> done{false};
        std::thread reader([&] {
          std::uint64_t seen = 0;
          float threshold = -std::numeric_limits<float>::infinity();
          while (!done) {
            const std::uint64_t now = top.rows_seen();
            const float raised = top.threshold();
            CHECK(now >= seen && !(raised < threshold));
            seen = now;
            threshold = raised;
          }
        });
        on_threads(threads, [&](unsigned) {
          constexpr std::size_t kChunk = 1013;
          for (std::size_t begin = next.fetch_add(kChunk); begin < kRows; begin = next.fetch_add(kChunk)) {
            top.push({scores.data() + begin, std::min(kChunk, kRows - begin)}, begin);
          }
        });
        done = true;
        reader.join();
        oracle::check_same(top, expected, kRows,
                           distribution + " k=" + std::to_string(k) + " threads=" + std::to_string(threads));
      }
    }
  }
}

TEST(one_push_on_many_threads) {
  constexpr std::size_t kRows = std::size_t{1} << 22;  // enough for five threads
  std::mt19937 random(5);
  for (const char* distribution : {"random", "up", "few", "nan"}) {
    const auto scores = oracle::scores(distribution, kRows, random);
    const auto expected = oracle::select(scores, 3000);
    for (const unsigned threads : {2U, 5U, 8U}) {
      TopK top(3000, {.num_rows = kRows, .nan = NanPolicy::kSkip});
      top.push(scores, 0, {.threads = threads});
      oracle::check_same(top, expected, kRows, distribution + std::string(" threads=") + std::to_string(threads));
    }
  }
}

TEST(pushes_that_hold_more_than_the_pool_lends_wait_for_each_other) {
  // Ascending: everything enters. Eight pushes would hold 8 x 8 MiB at once, and the pool lends 20 MiB.
  constexpr std::size_t kRows = std::size_t{1} << 23;
  constexpr std::size_t kChunk = kRows / 8;
  std::vector<float> scores(kRows);
  for (std::size_t i = 0; i < kRows; ++i) {
    scores[i] = static_cast<float>(i);
  }
  constexpr std::size_t kK = 500'000;
  TopK top(kK, {.num_rows = kRows});
  on_threads(8, [&](unsigned i) { top.push({scores.data() + i * kChunk, kChunk}, i * kChunk, {.threads = 2}); });
  oracle::check_same(top, oracle::select(scores, kK), kRows, "");
}

TEST(merges_in_both_directions_at_once_do_not_lock_up) {
  std::vector<float> scores(1000, 1.0F);
  TopK one(10);
  TopK two(10);
  one.push(scores, 0);
  two.push(scores, 1000);
  on_threads(2, [&](unsigned i) {
    for (int round = 0; round < 10; ++round) {
      i == 0 ? one.merge(two) : two.merge(one);
    }
  });
  CHECK(one.rows_seen() > 1000 && two.rows_seen() > 1000);
}

TEST(a_failing_thread_does_not_disturb_the_others) {
  constexpr std::size_t kRows = 80'000;
  std::mt19937 random(9);
  const auto scores = oracle::scores("random", kRows, random);
  auto bad = scores;
  bad[kRows - 1] = std::numeric_limits<float>::quiet_NaN();
  TopK top(100, {.num_rows = kRows});
  std::atomic<int> refused{0};
  on_threads(4, [&](unsigned i) {
    if (i == 0) {
      for (std::size_t begin = 0; begin < kRows; begin += 1000) {
        top.push({scores.data() + begin, 1000}, begin);
      }
      return;
    }
    try {
      top.push(bad, 0);
    } catch (const lookalike::InvalidInput&) {
      ++refused;
    }
  });
  CHECK_EQUAL(refused, 3);
  oracle::check_same(top, oracle::select(scores, 100), kRows, "");
}

int main() { return check::run(); }
