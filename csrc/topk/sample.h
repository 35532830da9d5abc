// The scores kept for the distribution: that of one row in each stretch of rows, chosen by a hash of the stretch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lookalike/topk.h"

namespace lookalike::detail {

/// Each row is written by the one thread that pushes it; reading at the same time sees what has come so far.
class Sample {
 public:
  /// Keeps nothing where `wanted` is false.
  Sample(std::uint64_t num_rows, bool wanted);

  [[nodiscard]] bool wanted() const noexcept { return stride_ != 0; }

  /// Takes note of the scores of rows first_row, ..., none of which is in the bitmap `skip` (may be null).
  void record(std::span<const float> scores, std::uint64_t first_row, const std::uint8_t* skip) noexcept;

  /// Forgets rows first_row .. first_row + count - 1.
  void forget(std::uint64_t first_row, std::uint64_t count) noexcept;

  /// Adds what `other`, made alike, holds.
  void merge(const Sample& other) noexcept;

  /// Rows a score stands for; 0 if nothing is kept.
  [[nodiscard]] std::uint64_t stride() const noexcept { return stride_; }
  [[nodiscard]] static std::uint64_t stride_for(std::uint64_t num_rows) noexcept;
  /// For each stretch of rows the score's orderable form, or 0: no score, or none yet.
  [[nodiscard]] Buffer<std::uint32_t> ranks() const;
  void restore(std::span<const std::uint32_t> ranks) noexcept;

  /// The scores, best first.
  [[nodiscard]] Buffer<float> sorted() const;

 private:
  [[nodiscard]] std::uint64_t row_of_stretch(std::uint64_t stretch) const noexcept;
  template <class Visit>
  void for_each(std::uint64_t first_row, std::uint64_t count, Visit visit) noexcept;

  std::uint64_t stride_;
  Buffer<std::uint32_t> ranks_;
};

}  // namespace lookalike::detail
