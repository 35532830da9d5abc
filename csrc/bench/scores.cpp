#include "bench/scores.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <new>
#include <numbers>

#include "cpu/parallel.h"

namespace lookalike::bench {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Rows a thread fills at a time; a multiple of 8, for the bitmap.
constexpr std::size_t kStretch = std::size_t{1} << 20;

float uniform(std::uint64_t random) { return static_cast<float>(random >> 40) * 0x1p-24F; }

/// The `step`-th of `steps` floats from the smallest normal one up to 1, in equal steps of their bits.
float ramp(std::uint64_t step, std::uint64_t steps) {
  constexpr std::uint64_t kLowest = 0x00800000;
  constexpr std::uint64_t kHighest = 0x3F800000;
  return std::bit_cast<float>(static_cast<std::uint32_t>(kLowest + step * (kHighest - kLowest) / steps));
}

float clustered(std::uint64_t random) {
  const float radius = std::sqrt(-2 * std::log(1 - uniform(random)));
  const float normal = radius * std::cos(2 * std::numbers::pi_v<float> * uniform(random << 24));
  return 1 / (1 + std::exp(-6 - normal / 10));
}

float score_at(Order order, std::uint64_t row, std::uint64_t rows) {
  switch (order) {
    case Order::kRandom:
      return uniform(random_at(row));
    case Order::kAscending:
      return ramp(row, rows);
    case Order::kDescending:
      return ramp(rows - 1 - row, rows);
    case Order::kEqual:
      return 0.5F;
    case Order::kFew:
      return static_cast<float>(random_at(row) % 5) / 5;
    case Order::kClustered:
      return clustered(random_at(row));
    case Order::kLast:
      return uniform(random_at(row)) / 2 + (row >= rows - rows / 100 ? 0.5F : 0.0F);
  }
  return 0;
}

/// Calls body(begin, end) for stretches that make up 0 .. rows.
template <class Body>
void in_stretches(std::size_t rows, unsigned threads, const Body& body) {
  const auto one = [&](std::size_t i) {
    body(i * kStretch, std::min(rows, (i + 1) * kStretch));
    return true;
  };
  detail::parallel_for((rows + kStretch - 1) / kStretch, threads, one, {});
}

}  // namespace

const std::vector<Order>& all_orders() {
  static const std::vector<Order> orders{Order::kRandom, Order::kAscending, Order::kDescending, Order::kEqual,
                                         Order::kFew,    Order::kClustered, Order::kLast};
  return orders;
}

std::string_view name(Order order) noexcept {
  switch (order) {
    case Order::kRandom:
      return "random";
    case Order::kAscending:
      return "ascending";
    case Order::kDescending:
      return "descending";
    case Order::kEqual:
      return "equal";
    case Order::kFew:
      return "few";
    case Order::kClustered:
      return "clustered";
    case Order::kLast:
      return "last";
  }
  return "unknown";
}

Scores::Scores(std::size_t rows)
    : rows_(rows), bytes_((rows * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage + kHugePage) {
  void* const pages = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) {
    throw std::bad_alloc();
  }
  // From the first border of huge pages on: the surplus before and after it is never touched.
  auto address = reinterpret_cast<std::uintptr_t>(pages);
  const std::size_t before = (kHugePage - address % kHugePage) % kHugePage;
  if (before > 0) {
    munmap(pages, before);
  }
  bytes_ -= before;
  data_ = reinterpret_cast<float*>(address + before);
#if defined(MADV_HUGEPAGE)
  huge_pages_advised_ = madvise(data_, bytes_, MADV_HUGEPAGE) == 0;
#endif
}

Scores::~Scores() { munmap(data_, bytes_); }

void Scores::fill(Order order, unsigned threads) {
  in_stretches(rows_, threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t row = begin; row < end; ++row) {
      data_[row] = score_at(order, row, rows_);
    }
  });
}

std::vector<std::uint8_t> skip_one_percent(std::size_t rows, unsigned threads) {
  constexpr std::uint64_t kOther = std::uint64_t{1} << 40;  // beyond the numbers the scores are made of
  std::vector<std::uint8_t> bitmap((rows + 7) / 8);
  in_stretches(rows, threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t row = begin; row < end; ++row) {
      if (random_at(kOther + row) % 100 == 0) {
        bitmap[row / 8] = static_cast<std::uint8_t>(bitmap[row / 8] | (1U << (row % 8)));
      }
    }
  });
  return bitmap;
}

}  // namespace lookalike::bench
