// A loop shared by a few threads that live as long as the call.
#pragma once

#include <cstddef>
#include <functional>

namespace lookalike::detail {

/// Calls body(i) for i = 0 .. tasks - 1, each once, on up to `threads` threads, the caller's among them.
///
/// Ends early when body returns false or anything throws; the first exception is rethrown once every thread is joined.
/// `poll` (may be empty) is called before the first task and between tasks, on the caller's thread, about every 50 ms.
/// Where the system refuses a thread, fewer do the work.
void parallel_for(std::size_t tasks, std::size_t threads, const std::function<bool(std::size_t)>& body,
                  const std::function<void()>& poll);

}  // namespace lookalike::detail
