#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"
#include "lookalike/cpu.h"
#include "lookalike/error.h"

using lookalike::SimdLevel;

TEST(levels_are_forced_and_reset) {
  const auto levels = lookalike::supported_simd_levels();
  CHECK(!levels.empty() && levels.front() == SimdLevel::kScalar);
  CHECK(std::is_sorted(levels.begin(), levels.end()));
  CHECK(lookalike::simd_level() == levels.back());
  for (const SimdLevel level : levels) {
    lookalike::force_simd_level(level);
    CHECK(lookalike::simd_level() == level);
  }
  for (const SimdLevel level : {SimdLevel::kAvx2, SimdLevel::kAvx512}) {
    if (std::find(levels.begin(), levels.end(), level) == levels.end()) {
      CHECK_THROWS(lookalike::InvalidInput, "cannot run", lookalike::force_simd_level(level));
    }
  }
  lookalike::reset_simd_level();
  CHECK(lookalike::simd_level() == levels.back());
}

TEST(every_task_runs_once) {
  for (const std::size_t threads : {1U, 2U, 8U}) {
    std::vector<std::atomic<int>> runs(1000);
    lookalike::detail::parallel_for(runs.size(), threads,
                                    [&](std::size_t i) {
                                      ++runs[i];
                                      return true;
                                    },
                                    {});
    CHECK(std::all_of(runs.begin(), runs.end(), [](const auto& count) { return count == 1; }));
  }
}

TEST(false_and_exceptions_stop_the_loop) {
  for (const std::size_t threads : {1U, 3U}) {
    std::atomic<int> runs{0};
    lookalike::detail::parallel_for(1'000'000, threads,
                                    [&](std::size_t i) {
                                      ++runs;
                                      return i < 10;
                                    },
                                    {});
    CHECK(runs < 1'000'000);
    runs = 0;
    const auto body = [&](std::size_t i) -> bool {
      ++runs;
      return i != 10 || (throw std::runtime_error("ten"), true);
    };
    CHECK_THROWS(std::runtime_error, "ten", lookalike::detail::parallel_for(1'000'000, threads, body, {}));
    CHECK(runs < 1'000'000);
  }
}

TEST(poll_runs_on_the_callers_thread_and_may_throw) {
  const auto caller = std::this_thread::get_id();
  bool elsewhere = false;
  const auto poll = [&] {
    elsewhere = elsewhere || std::this_thread::get_id() != caller;
    throw std::runtime_error("stop");
  };
  // Runs for ever unless polled.
  const auto body = [](std::size_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return true;
  };
  CHECK_THROWS(std::runtime_error, "stop", lookalike::detail::parallel_for(SIZE_MAX / 2, 2, body, poll));
  CHECK(!elsewhere);
}

int main() { return check::run(); }
