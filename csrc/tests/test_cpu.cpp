#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"
#include "lookalike/cpu.h"
#include "lookalike/error.h"
#include "lookalike/topk.h"

using lookalike::SimdLevel;

namespace {

constexpr const char* kVariable = "LOOKALIKE_SIMD";

/// Runs the body in a process of its own in which the variable is `value`: it is read once, so this one must not have
/// asked for the level before. Failed checks there count here.
template <class Body>
void with_variable(const std::string& value, Body body) {
  std::cout.flush();
  const pid_t child = fork();
  if (child == 0) {
    setenv(kVariable, value.c_str(), 1);
    try {
      body();
    } catch (const std::exception& error) {
      check::fail(value.c_str(), 0, std::string("threw ") + error.what());
    }
    _exit(std::min(check::failures, 1));
  }
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK_EQUAL_IN(status, 0, value);
}

bool supported(SimdLevel level) {
  const auto levels = lookalike::supported_simd_levels();
  return std::find(levels.begin(), levels.end(), level) != levels.end();
}

constexpr SimdLevel kAll[] = {SimdLevel::kScalar, SimdLevel::kAvx2, SimdLevel::kAvx512, SimdLevel::kAvx512Vnni,
                              SimdLevel::kNeon};

}  // namespace

// First, while this process has not asked for the level.
TEST(the_variable_sets_the_level_until_another_is_forced) {
  const auto levels = lookalike::supported_simd_levels();
  for (const SimdLevel level : levels) {
    with_variable(std::string(name(level)), [&] {
      CHECK(lookalike::simd_level() == level);
      setenv(kVariable, "changed", 1);
      CHECK(lookalike::simd_level() == level);
      for (const SimdLevel forced : levels) {
        lookalike::force_simd_level(forced);
        CHECK(lookalike::simd_level() == forced);
      }
      lookalike::reset_simd_level();
      CHECK(lookalike::simd_level() == level);
    });
  }
  with_variable("", [&] { CHECK(lookalike::simd_level() == levels.back()); });
}

TEST(a_variable_that_is_no_level_of_this_machine_is_refused_at_every_use) {
  std::vector<std::string> wrong{"sse9", "AVX2", "scalar "};
  for (const SimdLevel level : kAll) {
    if (!supported(level)) {
      wrong.emplace_back(name(level));
    }
  }
  CHECK(wrong.size() > 3);  // no machine has them all
  std::string possible;
  for (const SimdLevel level : lookalike::supported_simd_levels()) {
    possible += (possible.empty() ? "" : ", ") + std::string(name(level));
  }
  for (const std::string& value : wrong) {
    with_variable(value, [&] {
      const std::string message =
          "LOOKALIKE_SIMD is '" + value + "': unset it, or give it what this machine can run: " + possible;
      CHECK_THROWS(lookalike::InvalidInput, message, (void)lookalike::simd_level());
      const std::vector<float> scores{1, 2};
      lookalike::TopK top(1);
      CHECK_THROWS(lookalike::InvalidInput, message, top.push(scores, 0));
      CHECK_EQUAL(top.rows_seen(), 0U);
      try {
        top.push(scores, 0);
      } catch (const lookalike::InvalidInput& error) {
        CHECK_EQUAL(error.field(), kVariable);
      }
      lookalike::force_simd_level(SimdLevel::kScalar);  // wins, so the variable does not count
      top.push(scores, 0);
      CHECK_EQUAL(top.rows_seen(), 2U);
      lookalike::reset_simd_level();
      CHECK_THROWS(lookalike::InvalidInput, message, (void)lookalike::simd_level());
    });
  }
}

TEST(levels_are_found_by_name) {
  for (const SimdLevel level : kAll) {
    CHECK(lookalike::find_simd_level(name(level)) == level);
  }
  CHECK(!lookalike::find_simd_level("sse9"));
  CHECK(!lookalike::find_simd_level(""));
}

TEST(levels_are_forced_and_reset) {
  const auto levels = lookalike::supported_simd_levels();
  CHECK(!levels.empty() && levels.front() == SimdLevel::kScalar);
  CHECK(std::is_sorted(levels.begin(), levels.end()));
  CHECK(lookalike::simd_level() == levels.back());
  for (const SimdLevel level : levels) {
    lookalike::force_simd_level(level);
    CHECK(lookalike::simd_level() == level);
  }
  for (const SimdLevel level : kAll) {
    if (!supported(level)) {
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

int main() {
  unsetenv(kVariable);  // the tests set it themselves
  return check::run();
}
