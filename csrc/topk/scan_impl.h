// The scan, but for its three vector operations. Included once by each instruction set's translation unit, which may
// share no code with another: everything is in the unnamed namespace and calls no library function (see key.h).
//
// `Vector` has three static functions over kBlock scores; bit i of the result is score i:
//   not_below(scores, bound)   !(score < bound): true for NaN, and for everything if bound is NaN
//   nan(scores)
//   equal(scores, bits)        the score has exactly these bits
#pragma once

#include "topk/scan.h"

namespace lookalike::detail {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the bitmap is read a word at a time");

constexpr std::size_t kLine = 64 / sizeof(float);  // scores in a cache line

/// Bits of rows row .. row + count - 1, count <= 64. Reads no byte that holds none of them.
inline std::uint64_t skipped(const std::uint8_t* bitmap, std::uint32_t row, std::size_t count) noexcept {
  const std::uint8_t* first = bitmap + (row >> 3);
  const unsigned shift = row & 7;
  const std::size_t bytes = (shift + count + 7) / 8;
  std::uint64_t word = 0;
  __builtin_memcpy(&word, first, bytes < 8 ? bytes : 8);
  word >>= shift;
  if (bytes > 8) {
    word |= std::uint64_t{first[8]} << (64 - shift);
  }
  return word;
}

/// Deals with the `candidates` among the kBlock scores of which the first is that of `row`.
template <class Vector>
void enter(Scan& scan, const float* scores, std::uint32_t row, std::uint64_t candidates) noexcept {
  const std::uint64_t nans = Vector::nan(scores) & candidates;
  scan.nans += static_cast<std::uint64_t>(__builtin_popcountll(nans));
  candidates &= ~nans;

  // Rows mostly come in ascending order, and then no equal score can win: count them a block at a time, or a stream of
  // equal scores would be taken bit by bit.
  if (row > row_of(scan.threshold)) {
    const auto bits = __builtin_bit_cast(std::uint32_t, score_of(scan.threshold));
    const std::uint64_t equal = Vector::equal(scores, bits) & candidates;  // without -0, which the loop takes care of
    scan.ties += static_cast<std::uint64_t>(__builtin_popcountll(equal));
    candidates &= ~equal;
  }
  for (; candidates != 0; candidates &= candidates - 1) {
    const auto i = static_cast<std::uint32_t>(__builtin_ctzll(candidates));
    const Key key = make_key(scores[i], row + i);
    if (key >= scan.threshold) {
      scan.keys[scan.num_keys++] = key;
    } else if (rank_of(key) == rank_of(scan.threshold)) {
      ++scan.ties;
    }
  }
}

template <class Vector>
void scan_with(Scan& scan) noexcept {
  // NaN for kBelowAll, and then everything passes. Where denormals count as zero the compare lets in too many, never
  // too few; the keys decide.
  const float bound = score_of(scan.threshold);
  std::size_t position = scan.position;
  // A shorter first block, so that the others start on a cache line: loads across two halve the speed of AVX-512.
  const std::size_t past_edge = reinterpret_cast<std::uintptr_t>(scan.scores + position) / sizeof(float) % kLine;
  std::size_t step = kBlock - past_edge;
  while (position < scan.size && scan.num_keys + kBlock <= scan.capacity) {
    const std::size_t left = scan.size - position;
    const std::size_t count = left < step ? left : step;
    const auto row = static_cast<std::uint32_t>(scan.first_row + position);
    const float* scores = scan.scores + position;
    float partial[kBlock];
    if (count < kBlock) {
      __builtin_memset(partial, 0, sizeof partial);
      __builtin_memcpy(partial, scores, count * sizeof(float));
      scores = partial;
    }
    std::uint64_t candidates = Vector::not_below(scores, bound);
    if (candidates != 0) {
      candidates &= ~std::uint64_t{0} >> (kBlock - count);
      if (scan.skip != nullptr) {
        candidates &= ~skipped(scan.skip, row, count);
      }
      enter<Vector>(scan, scores, row, candidates);
    }
    position += count;
    step = kBlock;
  }
  scan.position = position;
}

}  // namespace
}  // namespace lookalike::detail
