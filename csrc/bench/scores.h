// The scores to select from: one array in memory, filled in place with one order after another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lookalike::bench {

enum class Order : std::uint8_t {
  kRandom,      // uniform in [0, 1), in steps of 2^-24
  kAscending,   // all different up to 10^9 rows: every score beats all before it
  kDescending,  // the same, turned round
  kEqual,       // all the same
  kFew,         // five different values
  kClustered,   // sigmoid(6 + normal / 10), a confident model: some 20,000 different values
  kLast,        // random in [0, 1/2), but in the last hundredth of the rows in [1/2, 1)
};

[[nodiscard]] const std::vector<Order>& all_orders();
[[nodiscard]] std::string_view name(Order order) noexcept;

/// Page-aligned memory; huge pages are asked for, so that a scan measures the memory and not its page tables.
class Scores {
 public:
  /// Throws std::bad_alloc. The memory is not touched before `fill`.
  explicit Scores(std::size_t rows);
  ~Scores();
  Scores(const Scores&) = delete;
  Scores& operator=(const Scores&) = delete;

  /// The same scores for any number of threads.
  void fill(Order order, unsigned threads);

  [[nodiscard]] std::span<const float> all() const noexcept { return {data_, rows_}; }
  [[nodiscard]] bool huge_pages_advised() const noexcept { return huge_pages_advised_; }

 private:
  std::size_t rows_;
  std::size_t bytes_;
  float* data_;
  bool huge_pages_advised_ = false;
};

/// A bitmap for TopKOptions::skip with one row in a hundred, at random.
[[nodiscard]] std::vector<std::uint8_t> skip_one_percent(std::size_t rows, unsigned threads);

/// The bytes' own random numbers: of `index`, the same on every machine (splitmix64).
[[nodiscard]] constexpr std::uint64_t random_at(std::uint64_t index) noexcept {
  std::uint64_t value = (index + 1) * 0x9E3779B97F4A7C15U;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9U;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBU;
  return value ^ (value >> 31);
}

}  // namespace lookalike::bench
