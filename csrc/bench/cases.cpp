#include "bench/cases.h"

#include <algorithm>
#include <iterator>

namespace lookalike::bench {
namespace {

constexpr std::uint64_t kMillion = 1'000'000;
// From what one batch of a model yields to what one shard file does.
constexpr std::uint64_t kChunks[] = {4096, std::uint64_t{1} << 16, std::uint64_t{1} << 20, std::uint64_t{1} << 22};
constexpr std::uint64_t kLargestChunk = kChunks[std::size(kChunks) - 1];
constexpr unsigned kProducers[] = {2, 8, 32};

void add_random(std::vector<Case>& cases, const Options& options) {
  constexpr Order kOrder = Order::kRandom;
  const unsigned most = options.threads.back();
  for (const unsigned threads : options.threads) {
    for (const std::uint64_t k : options.k) {
      cases.push_back({Kind::kMemory, kOrder, options.rows, k, threads});
    }
  }
  for (const Kind kind : {Kind::kSkip, Kind::kDistribution}) {
    for (const std::uint64_t k : {std::uint64_t{1000}, kMillion}) {
      cases.push_back({kind, kOrder, options.rows, k, most});
    }
  }
  for (const unsigned threads : options.threads) {
    for (const std::uint64_t k : options.k) {
      for (const std::uint64_t chunk : kChunks) {
        cases.push_back({Kind::kStream, kOrder, options.rows, k, threads, chunk, threads});
      }
    }
  }
  for (const unsigned producers : kProducers) {
    cases.push_back({Kind::kProducers, kOrder, options.rows, kMillion, most, kLargestChunk, producers});
  }
  for (const Kind kind : {Kind::kSave, Kind::kLoad, Kind::kMerge}) {
    for (const std::uint64_t k : options.k) {
      cases.push_back({kind, kOrder, options.rows, k, most});
    }
  }
  if (const std::uint64_t rows = std::min(options.rows, options.baseline_rows); rows > 0) {
    for (const Kind kind : {Kind::kHeap, Kind::kNthElement}) {
      for (const std::uint64_t k : {std::uint64_t{1000}, kMillion}) {
        cases.push_back({kind, kOrder, rows, k, most});
      }
    }
  }
}

}  // namespace

std::string Case::name() const {
  std::string text(bench::name(kind));
  text.append("/").append(bench::name(order)).append("/k=").append(std::to_string(k));
  text.append("/threads=").append(std::to_string(threads));
  if (kind == Kind::kProducers) {
    text.append("/producers=").append(std::to_string(producers));
  }
  if (chunk != 0) {
    text.append("/chunk=").append(std::to_string(chunk));
  }
  return text;
}

std::optional<Case> Case::reference() const {
  switch (kind) {
    case Kind::kSkip:
    case Kind::kDistribution:
    case Kind::kStream:
    case Kind::kHeap:
    case Kind::kNthElement:
      return Case{Kind::kMemory, order, rows, k, threads};
    default:
      return std::nullopt;
  }
}

bool Case::reads_all_scores() const noexcept {
  return kind != Kind::kSave && kind != Kind::kLoad && kind != Kind::kMerge;
}

std::optional<std::uint64_t> Case::extra_bytes_limit() const noexcept {
  if (!reads_all_scores() || kind == Kind::kHeap || kind == Kind::kNthElement) {
    return std::nullopt;
  }
  return 48 * k + (std::uint64_t{64} << 20);
}

std::string_view name(Kind kind) noexcept {
  switch (kind) {
    case Kind::kMemory:
      return "memory";
    case Kind::kSkip:
      return "skip";
    case Kind::kDistribution:
      return "distribution";
    case Kind::kStream:
      return "stream";
    case Kind::kProducers:
      return "producers";
    case Kind::kSave:
      return "save";
    case Kind::kLoad:
      return "load";
    case Kind::kMerge:
      return "merge";
    case Kind::kHeap:
      return "std::priority_queue";
    case Kind::kNthElement:
      return "std::nth_element";
  }
  return "unknown";
}

std::vector<Case> make_cases(const Options& options) {
  std::vector<Case> cases;
  for (const Order order : options.orders) {
    if (order == Order::kRandom) {
      add_random(cases, options);
    } else {
      cases.push_back({Kind::kMemory, order, options.rows, kMillion, options.threads.back()});
    }
  }
  std::erase_if(cases, [&](const Case& one) { return one.name().find(options.only) == std::string::npos; });
  return cases;
}

}  // namespace lookalike::bench
