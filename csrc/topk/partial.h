// A top-K under way as bytes, to be merged elsewhere or gone on with later; the same on every machine. Knows what keys
// and counts can be, not how they come about.
//
// The format, version 1. Numbers are little-endian and unsigned; nothing lies between the fields.
//
//   offset           type      meaning
//   0                8 bytes   magic: 0x89 "LALTOPK"
//   8                u32       version: 1
//   12               u32       size of the header, this table down to `samples`: 88
//   16               u64       k
//   24               u64       num_rows, at most 2^32
//   32               u64       rows_seen
//   40               u64       rows_skipped
//   48               u64       nans
//   56               u64       tied_out
//   64               u64       stride
//   72               u64       keys, their number: min(k, rows_seen - rows_skipped - nans)
//   80               u64       samples, their number: ceil(num_rows / stride); 0 where stride is 0
//   88               u64[]     the keys, best first: (orderable(score) << 32) | (2^32 - 1 - row), see key.h
//   88 + 8 keys      u32[]     the samples: orderable(score), or 0 for none
//   ... + 4 samples  u32       CRC-32C of everything before
//
// Whatever changes the meaning of a field gets a new version; a reader refuses those it does not know.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lookalike/buffer.h"
#include "topk/key.h"

namespace lookalike::detail {

/// What is saved. Nothing is copied.
struct PartialView {
  std::uint64_t k = 0;
  std::uint64_t num_rows = 0;
  std::uint64_t rows_seen = 0;
  std::uint64_t rows_skipped = 0;
  std::uint64_t nans = 0;
  /// Rows with the last key's score that are not among the keys.
  std::uint64_t tied_out = 0;
  /// Those selected: at most k, best first, strictly descending.
  std::span<const Key> keys = {};
  /// Rows that a sample stands for; 0: no distribution is kept.
  std::uint64_t stride = 0;
  /// For each stretch of `stride` rows: orderable(score), or 0 where there is none (yet).
  std::span<const std::uint32_t> sample = {};
};

/// What was saved: the same fields.
struct Partial {
  std::uint64_t k = 0;
  std::uint64_t num_rows = 0;
  std::uint64_t rows_seen = 0;
  std::uint64_t rows_skipped = 0;
  std::uint64_t nans = 0;
  std::uint64_t tied_out = 0;
  Buffer<Key> keys = {};
  std::uint64_t stride = 0;
  Buffer<std::uint32_t> sample = {};

  [[nodiscard]] PartialView view() const {
    return {k, num_rows, rows_seen, rows_skipped, nans, tied_out, keys, stride, sample};
  }
};

/// Does not check what it is given: decode does.
[[nodiscard]] std::vector<std::byte> encode(const PartialView& partial);

/// For bytes from anywhere: allocates no more than they take, and lets nothing pass that no selection can be. (Only
/// a row in two keys of different scores is not noticed: it does the harm of a row pushed twice.) Throws DataCorrupted.
[[nodiscard]] Partial decode(std::span<const std::byte> bytes);

}  // namespace lookalike::detail
