// Times the top-K beside a plain scan of the same scores; kUsage says how to run it.
//
// Scan, case and (where there is one) reference are run in turn, and their medians compared: a machine that slows down
// for a while slows all of them.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "bench/baselines.h"
#include "bench/cases.h"
#include "bench/meter.h"
#include "bench/options.h"
#include "bench/report.h"
#include "bench/scores.h"
#include "bench/verify.h"
#include "cpu/parallel.h"
#include "lookalike/topk.h"

namespace lookalike::bench {
namespace {

/// One run of a case.
struct Sample {
  Cost cost;
  Selection selection;
  std::optional<std::uint64_t> saved_bytes = std::nullopt;
  std::optional<double> distribution_seconds = std::nullopt;
};

/// Numbers 0 .. size - 1 in an order that is the same every time.
std::vector<std::uint32_t> shuffled(std::uint64_t size) {
  std::vector<std::uint32_t> numbers(size);
  for (std::uint32_t i = 0; i < size; ++i) {
    numbers[i] = i;
    std::swap(numbers[i], numbers[random_at(i) % (i + std::uint64_t{1})]);
  }
  return numbers;
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), scores_(options.rows) {}

  [[nodiscard]] const Scores& scores() const noexcept { return scores_; }

  /// Throws WrongResult.
  [[nodiscard]] Result run(const Case& measured);

 private:
  using Sampler = std::function<Sample()>;

  [[nodiscard]] Sampler sampler(const Case& measured);
  [[nodiscard]] Sampler sampler_of_push(const Case& measured);
  [[nodiscard]] Sampler sampler_of_stream(const Case& measured);
  [[nodiscard]] Sampler sampler_of_saved(const Case& measured);

  void verify(const Case& measured, const Sample& sample, float highest);
  [[nodiscard]] TopKOptions top_options(const Case& measured) const;
  [[nodiscard]] std::span<const float> scores_of(const Case& measured) const {
    return scores_.all().first(measured.rows);
  }

  const Options options_;
  Scores scores_;
  std::optional<Order> filled_;
  std::vector<std::uint8_t> skip_;  // made when a case first wants it
  Verifier verifier_;
};

TopKOptions Bench::top_options(const Case& measured) const {
  TopKOptions options;
  options.num_rows = measured.rows;
  options.distribution = measured.kind == Kind::kDistribution;
  if (measured.kind == Kind::kSkip) {
    options.skip = skip_;
  }
  return options;
}

Bench::Sampler Bench::sampler_of_push(const Case& measured) {
  return [this, measured] {
    Sample sample;
    const Meter meter;
    TopK top(measured.k, top_options(measured));
    top.push(scores_of(measured), 0, {measured.threads, {}});
    sample.selection = top.finish(true, measured.threads);
    sample.cost = meter.stop();
    if (measured.kind == Kind::kDistribution) {
      const Clock::time_point start = Clock::now();
      const Distribution distribution = top.distribution();
      sample.distribution_seconds = seconds_since(start);
      if (distribution.population != measured.rows) {
        throw WrongResult("the distribution is not that of all scores");
      }
    }
    return sample;
  };
}

Bench::Sampler Bench::sampler_of_stream(const Case& measured) {
  return [this, measured, order = shuffled((measured.rows + measured.chunk - 1) / measured.chunk)] {
    const std::span<const float> scores = scores_of(measured);
    Sample sample;
    const Meter meter;
    TopK top(measured.k, top_options(measured));
    std::atomic<std::size_t> next{0};
    const auto produce = [&](std::size_t /*producer*/) {
      for (std::size_t i = next++; i < order.size(); i = next++) {
        const std::uint64_t first_row = order[i] * measured.chunk;
        top.push(scores.subspan(first_row, std::min(measured.chunk, measured.rows - first_row)), first_row);
      }
      return true;
    };
    detail::parallel_for(measured.producers, measured.producers, produce, {});
    sample.selection = top.finish(true, measured.threads);
    sample.cost = meter.stop();
    return sample;
  };
}

Bench::Sampler Bench::sampler_of_saved(const Case& measured) {
  const TopKOptions options = top_options(measured);
  const auto pushed = [&](std::uint64_t begin, std::uint64_t end) {
    auto top = std::make_shared<TopK>(measured.k, options);
    top->push(scores_of(measured).subspan(begin, end - begin), begin, {measured.threads, {}});
    return top;
  };
  if (measured.kind == Kind::kMerge) {
    const std::uint64_t half = measured.rows / 2;
    return [measured, options, first = pushed(0, half)->save(), second = pushed(half, measured.rows)->save()] {
      TopK top = TopK::load(first, options);
      const TopK other = TopK::load(second, options);
      const Meter meter;
      top.merge(other);
      const Cost cost = meter.stop();
      return Sample{cost, top.finish(true, measured.threads), second.size()};
    };
  }
  const auto top = pushed(0, measured.rows);
  static_cast<void>(top->finish(true, measured.threads));
  if (measured.kind == Kind::kSave) {
    return [measured, top] {
      const Meter meter;
      const std::vector<std::byte> saved = top->save();
      const Cost cost = meter.stop();
      return Sample{cost, top->finish(true, measured.threads), saved.size()};
    };
  }
  return [measured, options, saved = top->save()] {
    const Meter meter;
    TopK loaded = TopK::load(saved, options);
    const Cost cost = meter.stop();
    return Sample{cost, loaded.finish(true, measured.threads), saved.size()};
  };
}

Bench::Sampler Bench::sampler(const Case& measured) {
  switch (measured.kind) {
    case Kind::kMemory:
    case Kind::kSkip:
    case Kind::kDistribution:
      return sampler_of_push(measured);
    case Kind::kStream:
    case Kind::kProducers:
      return sampler_of_stream(measured);
    case Kind::kSave:
    case Kind::kLoad:
    case Kind::kMerge:
      return sampler_of_saved(measured);
    case Kind::kHeap:
    case Kind::kNthElement:
      break;
  }
  return [this, measured] {
    const auto select = measured.kind == Kind::kHeap ? select_by_heap : select_by_nth_element;
    Sample sample;
    const Meter meter;
    sample.selection = select(scores_of(measured), measured.k);
    sample.cost = meter.stop();
    return sample;
  };
}

void Bench::verify(const Case& measured, const Sample& sample, float highest) {
  const bool skips = measured.kind == Kind::kSkip;
  if (!skips && sample.selection.scores.at(0) != highest) {
    throw WrongResult("the best score is not the highest");
  }
  const std::string problem = std::string(name(measured.order)) + (skips ? "/skip/" : "/") +
                              std::to_string(measured.rows) + '/' + std::to_string(measured.k);
  const std::span<const std::uint8_t> skip = skips ? std::span<const std::uint8_t>(skip_) : std::span<std::uint8_t>();
  verifier_.check(problem, sample.selection, scores_of(measured), measured.k, skip, options_.threads.back());
}

Result Bench::run(const Case& measured) {
  const unsigned all_threads = options_.threads.back();
  if (filled_ != measured.order) {
    scores_.fill(measured.order, all_threads);
    filled_ = measured.order;
  }
  if (measured.kind == Kind::kSkip && skip_.empty()) {
    skip_ = skip_one_percent(options_.rows, all_threads);
  }
  const Sampler ours = sampler(measured);
  const auto reference = measured.reference();
  const Sampler other = reference ? sampler(*reference) : Sampler();

  Result result{measured, {}, {}};
  for (unsigned i = 0; i < options_.repeat; ++i) {
    const Clock::time_point start = Clock::now();
    const float highest = max_scan(scores_of(measured), measured.threads);
    result.scan.push_back(seconds_since(start));
    if (reference) {
      const Sample sample = other();
      verify(*reference, sample, highest);
      result.reference.push_back(sample.cost.seconds);
    }
    const Sample sample = ours();
    verify(measured, sample, highest);
    result.ours.push_back(sample.cost.seconds);
    if (sample.cost.extra_bytes) {
      result.extra_bytes = std::max(result.extra_bytes.value_or(0), *sample.cost.extra_bytes);
    }
    if (sample.distribution_seconds) {
      result.distribution.push_back(*sample.distribution_seconds);
    }
    result.saved_bytes = sample.saved_bytes;
    result.selected = sample.selection.rows.size();
    result.checksum = Verifier::checksum(sample.selection);
  }
  return result;
}

int run_all(const Options& options) {
  const std::vector<Case> cases = make_cases(options);
  if (cases.empty()) {
    throw BadOption("no case has '" + options.only + "' in its name");
  }
  Bench bench(options);
  std::cout << environment_json(options, bench.scores().huge_pages_advised()) << std::endl;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const std::string name = cases[i].name();
    try {
      const Result result = bench.run(cases[i]);
      const double ours = median(result.ours);
      const double scan = median(result.scan);
      std::fprintf(stderr, "[%zu/%zu] %-55s %9.4f s, scan %.4f s: %.2f x\n", i + 1, cases.size(), name.c_str(), ours,
                   scan, ours / scan);
      std::cout << to_json(result) << std::endl;
    } catch (const WrongResult& error) {
      std::fprintf(stderr, "wrong result in %s: %s\n", name.c_str(), error.what());
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace lookalike::bench

int main(int argc, char** argv) {
  namespace bench = lookalike::bench;
  try {
    const bench::Options options = bench::parse_options({argv + 1, argv + argc});
    if (options.help) {
      std::fputs(bench::kUsage, stdout);
      return 0;
    }
    return bench::run_all(options);
  } catch (const bench::BadOption& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "out of memory: give fewer --rows or --baseline-rows\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 1;
}
