#include "topk/sort.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>

#include "cpu/parallel.h"

namespace lookalike::detail {
namespace {

using Emit = std::function<void(std::size_t, std::span<const Key>)>;

// Keys in a bucket, about: with its copy it lies in L2.
constexpr std::size_t kBucket = 4096;
// More buckets than this, and the first pass writes to more places than L2 holds.
constexpr std::size_t kMaxBuckets = 2048;
// A bucket above this is cut again rather than sorted outside the cache.
constexpr std::size_t kMaxBucket = 16 * kBucket;
// Scores that crowd, tied ones say, are cut again by their rows. What deceives the sample once more is sorted by
// comparison, in place: every cut takes as much memory again.
constexpr int kMaxDepth = 1;
constexpr std::size_t kSample = 4096;
// Below this, comparing is faster than counting.
constexpr std::size_t kFew = 128;

/// Sorts by counting, eleven bits at most at a time. Returns where the result is: one of the two.
std::span<const Key> radix_sort(std::span<Key> keys, std::span<Key> scratch) {
  constexpr unsigned kDigit = 11;  // the counts lie in L1
  Key differing = 0;
  for (const Key key : keys) {
    differing |= key ^ keys.front();
  }
  const auto bits = static_cast<unsigned>(std::bit_width(differing));
  const unsigned passes = (bits + kDigit - 1) / kDigit;
  const unsigned digit = passes == 0 ? 0 : (bits + passes - 1) / passes;
  const Key mask = (Key{1} << digit) - 1;
  std::array<std::uint32_t, std::size_t{1} << kDigit> places;
  for (unsigned shift = 0; shift < bits; shift += digit) {
    std::fill_n(places.begin(), mask + 1, 0);
    for (const Key key : keys) {
      ++places[(~key >> shift) & mask];  // inverted: the best come first
    }
    std::uint32_t place = 0;
    for (std::size_t i = 0; i <= mask; ++i) {
      place += std::exchange(places[i], place);
    }
    for (const Key key : keys) {
      scratch[places[(~key >> shift) & mask]++] = key;
    }
    std::swap(keys, scratch);
  }
  return keys;
}

/// Maps keys to buckets, better ones to lower numbers.
class Cut {
 public:
  Cut(std::span<const std::span<const Key>> parts, std::size_t size) {
    std::vector<Key> some;
    const std::size_t stride = std::max<std::size_t>(1, size / kSample);
    some.reserve(size / stride + parts.size());
    for (const auto part : parts) {
      for (std::size_t i = 0; i < part.size(); i += stride) {
        some.push_back(part[i]);
      }
    }
    // The hundredth part at either end, with its far outliers, shares the first and the last bucket.
    const auto tail = static_cast<std::ptrdiff_t>(some.size() / 100);
    std::nth_element(some.begin(), some.begin() + tail, some.end(), std::greater<>());
    high_ = some[static_cast<std::size_t>(tail)];
    std::nth_element(some.begin(), some.end() - 1 - tail, some.end(), std::greater<>());
    const Key low = some[some.size() - 1 - static_cast<std::size_t>(tail)];
    const std::size_t wanted = std::clamp<std::size_t>(size / kBucket, 2, kMaxBuckets);
    while (((high_ - low) >> shift_) >= wanted) {
      ++shift_;
    }
    buckets_ = ((high_ - low) >> shift_) + 2;
  }

  [[nodiscard]] std::size_t buckets() const noexcept { return buckets_; }
  [[nodiscard]] std::size_t operator()(Key key) const noexcept {
    const Key below = key >= high_ ? 0 : high_ - key;
    return std::min<std::size_t>(below >> shift_, buckets_ - 1);
  }

 private:
  Key high_;
  unsigned shift_ = 0;
  std::size_t buckets_;
};

void sort_parts(std::span<const std::span<const Key>> parts, std::size_t count, std::size_t threads, int depth,
                const Emit& emit);

/// `keys` may be reordered. `wanted` of them are emitted.
void sort_bucket(std::span<Key> keys, std::size_t offset, std::size_t wanted, int depth, const Emit& emit) {
  if (keys.size() > kMaxBucket && depth < kMaxDepth) {
    const std::span<const Key> part = keys;
    sort_parts({&part, 1}, wanted, 1, depth + 1,
               [&](std::size_t at, std::span<const Key> sorted) { emit(offset + at, sorted); });
    return;
  }
  if (keys.size() <= kFew || keys.size() > kMaxBucket) {
    std::sort(keys.begin(), keys.end(), std::greater<>());
    emit(offset, keys.first(wanted));
    return;
  }
  Buffer<Key> scratch(keys.size());
  emit(offset, radix_sort(keys, scratch).first(wanted));
}

void sort_parts(std::span<const std::span<const Key>> parts, std::size_t count, std::size_t threads, int depth,
                const Emit& emit) {
  std::size_t size = 0;
  for (const auto part : parts) {
    size += part.size();
  }
  const Cut cut(parts, size);

  // starts[part][bucket]: first how many keys, then where the next one goes.
  std::vector<std::vector<std::size_t>> starts(parts.size());
  parallel_for(parts.size(), threads,
               [&](std::size_t i) {
                 starts[i].resize(cut.buckets());
                 for (const Key key : parts[i]) {
                   ++starts[i][cut(key)];
                 }
                 return true;
               },
               {});
  std::vector<std::size_t> bounds{0};  // of the buckets that hold the best `count`
  for (std::size_t bucket = 0; bucket < cut.buckets() && bounds.back() < count; ++bucket) {
    std::size_t start = bounds.back();
    for (auto& of_part : starts) {
      start += std::exchange(of_part[bucket], start);
    }
    bounds.push_back(start);
  }
  const std::size_t buckets = bounds.size() - 1;

  Buffer<Key> keys(bounds.back());
  parallel_for(parts.size(), threads,
               [&](std::size_t i) {
                 for (const Key key : parts[i]) {
                   const std::size_t bucket = cut(key);
                   if (bucket < buckets) {
                     keys[starts[i][bucket]++] = key;
                   }
                 }
                 return true;
               },
               {});
  parallel_for(buckets, threads,
               [&](std::size_t i) {
                 const std::size_t wanted = std::min(bounds[i + 1], count) - bounds[i];
                 sort_bucket(std::span(keys).subspan(bounds[i], bounds[i + 1] - bounds[i]), bounds[i], wanted, depth,
                             emit);
                 return true;
               },
               {});
}

}  // namespace

void sort_best(const std::vector<Block>& blocks, std::size_t count, std::size_t threads, const Emit& emit) {
  if (count == 0) {
    return;
  }
  const std::vector<std::span<const Key>> parts(blocks.begin(), blocks.end());
  sort_parts(parts, count, threads, 0, emit);
}

}  // namespace lookalike::detail
