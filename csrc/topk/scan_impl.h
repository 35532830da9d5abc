// The scan, but for its few vector operations. Included once by each instruction set's translation unit, which may
// share no code with another: everything is in the unnamed namespace and calls no library function (see key.h).
//
// `Vector` has static functions over kBlock scores; bit i of a mask is score i:
//   any_not_below(scores, bound)   false only if score < bound holds for all: mostly so, and the faster the better
//   reached(scores, bound)         mask of score >= bound
//   any_nan(scores)                false only if none is NaN
//   nan(scores)                    mask of NaN
//   equal(scores, bits)            mask of the scores with exactly these bits
// and may have one that takes the place of admit() below:
//   admit(scan, scores, row, candidates)
#pragma once

#include "topk/scan.h"

namespace lookalike::detail {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the bitmap is read a word at a time");

constexpr std::size_t kBlocks = 8;                 // looked at together where many have candidates
constexpr std::size_t kNear = 64 * kBlock;         // candidates this near each other are many
constexpr std::size_t kLine = 64 / sizeof(float);  // scores in a cache line

inline bool has_room(const Scan& scan) noexcept { return scan.num_keys + (kBlocks + 1) * kBlock <= scan.capacity; }

inline std::uint32_t row_at(const Scan& scan, std::size_t position) noexcept {
  return static_cast<std::uint32_t>(scan.first_row + position);
}

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

/// Lets in those `candidates`, none of them NaN, whose keys reach the threshold. The first score is that of `row`.
template <class Vector>
void admit(Scan& scan, const float* scores, std::uint32_t row, std::uint64_t candidates) noexcept {
  std::size_t num_keys = scan.num_keys;
  std::uint64_t ties = 0;
  // Rows mostly come in ascending order, and then no equal score can win: count them a block at a time, or a stream of
  // equal scores would be taken bit by bit.
  if (row > row_of(scan.threshold)) {
    const auto bits = __builtin_bit_cast(std::uint32_t, score_of(scan.threshold));
    const std::uint64_t equal = Vector::equal(scores, bits) & candidates;  // without -0, which the loop takes care of
    ties += static_cast<std::uint64_t>(__builtin_popcountll(equal));
    candidates &= ~equal;
  }
  for (; candidates != 0; candidates &= candidates - 1) {
    const auto i = static_cast<std::uint32_t>(__builtin_ctzll(candidates));
    const Key key = make_key(scores[i], row + i);
    const bool enters = key >= scan.threshold;
    scan.keys[num_keys] = key;  // without a branch, which would be as good as random where it is not always taken
    num_keys += enters ? 1 : 0;
    ties += !enters && rank_of(key) == rank_of(scan.threshold) ? 1 : 0;
  }
  scan.num_keys = num_keys;
  scan.ties += ties;
}

/// Deals with the first `count` of kBlock scores, of which the first is that of `row`.
template <class Vector>
void enter(Scan& scan, const float* scores, std::size_t count, std::uint32_t row, float bound) noexcept {
  std::uint64_t eligible = ~std::uint64_t{0} >> (kBlock - count);
  if (scan.skip != nullptr) {
    eligible &= ~skipped(scan.skip, row, count);
  }
  const std::uint64_t candidates = Vector::reached(scores, bound) & eligible;
  if (Vector::any_nan(scores)) {
    scan.nans += static_cast<std::uint64_t>(__builtin_popcountll(Vector::nan(scores) & eligible));
  }
  if constexpr (requires { Vector::admit(scan, scores, row, candidates); }) {
    Vector::admit(scan, scores, row, candidates);
  } else {
    admit<Vector>(scan, scores, row, candidates);
  }
}

/// The same for scores that are fewer than a block, or not to be read beyond.
template <class Vector>
void enter_part(Scan& scan, const float* scores, std::size_t count, std::uint32_t row, float bound) noexcept {
  float part[kBlock];
  __builtin_memset(part, 0, sizeof part);
  __builtin_memcpy(part, scores, count * sizeof(float));
  enter<Vector>(scan, part, count, row, bound);
}

/// Blocks one by one, from `position` on: the fastest while hardly any has a candidate. Returns where two of them had
/// within kNear scores, or the room, or the whole blocks, ended.
template <class Vector>
[[gnu::noinline]] std::size_t scan_sparse(Scan& scan, std::size_t position, float bound) noexcept {
  std::size_t near = position;  // a candidate before this is near the last one
  for (; scan.size - position >= kBlock; position += kBlock) {
    if (Vector::any_not_below(scan.scores + position, bound)) {
      if (position < near || !has_room(scan)) {
        return position;
      }
      enter<Vector>(scan, scan.scores + position, kBlock, row_at(scan, position), bound);
      near = position + kNear;
    }
  }
  return position;
}

/// Several blocks at a time: first looked at without a branch, which would be as good as random, then dealt with from
/// L1. Returns where there was no candidate for kNear scores, or the room, or so many blocks, ended.
template <class Vector>
[[gnu::noinline]] std::size_t scan_dense(Scan& scan, std::size_t position, float bound) noexcept {
  std::size_t near = position + kNear;
  while (scan.size - position >= kBlocks * kBlock && position < near && has_room(scan)) {
    const float* scores = scan.scores + position;
    std::uint32_t found = 0;
#pragma GCC unroll 1
    for (std::uint32_t i = 0; i < kBlocks; ++i) {
      found |= std::uint32_t{Vector::any_not_below(scores + i * kBlock, bound)} << i;
    }
    near = found != 0 ? position + kNear : near;
    for (; found != 0; found &= found - 1) {
      const std::size_t begin = static_cast<std::size_t>(__builtin_ctz(found)) * kBlock;
      enter<Vector>(scan, scores + begin, kBlock, row_at(scan, position + begin), bound);
    }
    position += kBlocks * kBlock;
  }
  return position;
}

template <class Vector>
void scan_with(Scan& scan) noexcept {
  // Where denormals count as zero the compares let in too many, never too few; the keys decide.
  const float bound = scan.threshold == kBelowAll ? -__builtin_inff() : score_of(scan.threshold);
  std::size_t position = scan.position;
  // A short block first, so that the others start on a cache line: loads across two halve the speed of AVX-512.
  const std::size_t past_line = reinterpret_cast<std::uintptr_t>(scan.scores + position) / sizeof(float) % kLine;
  if (past_line != 0 && position < scan.size && has_room(scan)) {
    const std::size_t left = scan.size - position;
    const std::size_t count = left < kLine - past_line ? left : kLine - past_line;
    enter_part<Vector>(scan, scan.scores + position, count, row_at(scan, position), bound);
    position += count;
  }
  while (scan.size - position >= kBlocks * kBlock && has_room(scan)) {
    position = scan_sparse<Vector>(scan, position, bound);
    position = scan_dense<Vector>(scan, position, bound);
  }
  while (position < scan.size && scan.size - position < kBlocks * kBlock && has_room(scan)) {
    const std::size_t left = scan.size - position;
    const std::size_t count = left < kBlock ? left : kBlock;
    enter_part<Vector>(scan, scan.scores + position, count, row_at(scan, position), bound);
    position += count;
  }
  scan.position = position;
}

}  // namespace
}  // namespace lookalike::detail
