// What bench_topk measures.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/options.h"
#include "bench/scores.h"

namespace lookalike::bench {

enum class Kind : std::uint8_t {
  kMemory,        // one push of all scores, finish
  kSkip,          // with 1% of the rows in a skip bitmap
  kDistribution,  // with TopKOptions::distribution
  kStream,        // producers push chunks in random order, each with one thread
  kProducers,     // the same, for the memory that many producers take
  kSave,          // of a finished selection
  kLoad,
  kMerge,       // of the selections of two halves
  kHeap,        // std::priority_queue
  kNthElement,  // std::nth_element
};

struct Case {
  Kind kind;
  Order order;
  std::uint64_t rows;
  std::uint64_t k;
  unsigned threads;         // of the scan, the selection and the reference; what the standard library does takes one
  std::uint64_t chunk = 0;  // scores a push; 0: all in one
  unsigned producers = 0;   // threads that push at once; 0: the caller alone

  [[nodiscard]] std::string name() const;

  /// What it is compared with besides the scan: the selection in memory of the same scores and k.
  [[nodiscard]] std::optional<Case> reference() const;

  [[nodiscard]] bool reads_all_scores() const noexcept;

  /// Of the memory beyond the input, where there is one.
  [[nodiscard]] std::optional<std::uint64_t> extra_bytes_limit() const noexcept;
};

[[nodiscard]] std::string_view name(Kind kind) noexcept;

/// Those of one order together. Only those whose name holds options.only.
[[nodiscard]] std::vector<Case> make_cases(const Options& options);

}  // namespace lookalike::bench
