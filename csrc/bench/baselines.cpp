#include "bench/baselines.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <vector>

#include "bench/max_scan.h"
#include "cpu/parallel.h"
#include "topk/key.h"

namespace lookalike::bench {
namespace {

using detail::Key;

Selection to_selection(std::span<const Key> keys) {
  Selection selection;
  selection.rows.reserve(keys.size());
  selection.scores.reserve(keys.size());
  for (const Key key : keys) {
    selection.rows.push_back(detail::row_of(key));
    selection.scores.push_back(detail::score_of(key));
  }
  return selection;
}

}  // namespace

float max_scan(std::span<const float> scores, unsigned threads) {
  constexpr std::size_t kLine = 64 / sizeof(float);  // parts start on a cache line, as the array does
  const std::size_t part = (scores.size() / threads + kLine) / kLine * kLine;
  std::vector<float> highest(threads, scores[0]);
  const auto scan = [&](std::size_t i) {
    const std::size_t begin = std::min(i * part, scores.size());
    const std::size_t end = std::min(begin + part, scores.size());
    if (begin < end) {
      highest[i] = max_kernel(scores.data() + begin, end - begin);
    }
    return true;
  };
  detail::parallel_for(threads, threads, scan, {});
  return *std::max_element(highest.begin(), highest.end());
}

Selection select_by_heap(std::span<const float> scores, std::size_t k) {
  k = std::min(k, scores.size());
  std::vector<Key> first(k);
  for (std::size_t row = 0; row < k; ++row) {
    first[row] = detail::make_key(scores[row], static_cast<std::uint32_t>(row));
  }
  std::priority_queue<Key, std::vector<Key>, std::greater<>> best(std::greater<>(), std::move(first));
  float lowest = detail::score_of(best.top());
  for (std::size_t row = k; row < scores.size(); ++row) {
    if (scores[row] > lowest) {  // rows ascend: an equal score loses
      best.pop();
      best.push(detail::make_key(scores[row], static_cast<std::uint32_t>(row)));
      lowest = detail::score_of(best.top());
    }
  }
  std::vector<Key> keys;
  keys.reserve(best.size());
  for (; !best.empty(); best.pop()) {
    keys.push_back(best.top());
  }
  std::reverse(keys.begin(), keys.end());
  return to_selection(keys);
}

Selection select_by_nth_element(std::span<const float> scores, std::size_t k) {
  std::vector<Key> keys(scores.size());
  for (std::size_t row = 0; row < scores.size(); ++row) {
    keys[row] = detail::make_key(scores[row], static_cast<std::uint32_t>(row));
  }
  if (k < keys.size()) {
    std::nth_element(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(k), keys.end(), std::greater<>());
    keys.resize(k);
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  return to_selection(keys);
}

}  // namespace lookalike::bench
