#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace lookalike::detail {
namespace {

using Clock = std::chrono::steady_clock;

// A person who presses Ctrl-C feels no delay at this interval, and a poll that takes a lock costs nothing measurable.
constexpr auto kPollInterval = std::chrono::milliseconds(50);

class Loop {
 public:
  Loop(std::size_t tasks, const std::function<bool(std::size_t)>& body) : tasks_(tasks), body_(body) {}

  /// Takes tasks until none is left. `poll` may be null.
  void work(const std::function<void()>* poll) noexcept {
    try {
      Clock::time_point polled{};  // long ago: what is pending already ends the loop before it begins
      for (std::size_t task = next_++; task < tasks_; task = next_++) {
        if (poll != nullptr && Clock::now() - polled >= kPollInterval) {
          (*poll)();
          polled = Clock::now();
        }
        if (!body_(task)) {
          stop();
        }
      }
    } catch (...) {
      stop();
      const std::lock_guard lock(mutex_);
      if (!error_) {
        error_ = std::current_exception();
      }
    }
  }

  /// To be called when no thread works any more.
  void rethrow() const {
    if (error_) {
      std::rethrow_exception(error_);
    }
  }

 private:
  void stop() noexcept { next_ = tasks_; }

  std::size_t tasks_;
  const std::function<bool(std::size_t)>& body_;
  std::atomic<std::size_t> next_{0};
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

void parallel_for(std::size_t tasks, std::size_t threads, const std::function<bool(std::size_t)>& body,
                  const std::function<void()>& poll) {
  Loop loop(tasks, body);
  std::vector<std::thread> helpers;
  const std::size_t wanted = std::min(threads, tasks);
  helpers.reserve(wanted);
  try {
    while (helpers.size() + 1 < wanted) {
      helpers.emplace_back([&loop] { loop.work(nullptr); });
    }
  } catch (const std::system_error&) {
    // The limit on threads is reached: those that started, and the caller, do it all.
  } catch (const std::bad_alloc&) {
    // So too where a thread finds no memory.
  }
  loop.work(poll ? &poll : nullptr);
  for (std::thread& helper : helpers) {
    helper.join();
  }
  loop.rethrow();
}

}  // namespace lookalike::detail
