// The kernel of the selection: find the few scores of a stretch that may still enter.
#pragma once

#include <cstddef>
#include <cstdint>

#include "topk/key.h"

namespace lookalike::detail {

/// Scores looked at together, one bit each in a word.
constexpr std::size_t kBlock = 64;

struct Scan {
  const float* scores;       // of rows first_row, first_row + 1, ...
  std::size_t size;          // how many
  std::uint32_t first_row;   // first_row + size <= 2^32
  const std::uint8_t* skip;  // bitmap from row 0 on that covers the rows, or null
  Key threshold;             // keys below it are turned away
  Key* keys;                 // where those let in go
  std::size_t capacity;      // of `keys`, at least 10 kBlock

  // Advanced by the kernel, which stops at the end or when `keys` might overflow; some past num_keys are overwritten.
  std::size_t position = 0;  // scores done
  std::size_t num_keys = 0;
  std::uint64_t ties = 0;  // turned away with exactly the threshold's score
  std::uint64_t nans = 0;  // in rows not skipped
};

using ScanFunction = void (*)(Scan&) noexcept;

void scan_scalar(Scan& scan) noexcept;
#if defined(__x86_64__)
void scan_avx2(Scan& scan) noexcept;
void scan_avx512(Scan& scan) noexcept;
#elif defined(__aarch64__)
void scan_neon(Scan& scan) noexcept;
#endif

}  // namespace lookalike::detail
