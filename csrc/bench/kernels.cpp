// Google Benchmark of the scan, at every level that this machine has: what one thread does with scores in its cache and
// in memory, when none, few and many of them pass the threshold. In the cache the branch predictor may learn them by
// heart, so figures for few passing flatter there.
//
//   bench_kernels --benchmark_filter=avx2/memory
#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "bench/scores.h"
#include "lookalike/cpu.h"
#include "topk/key.h"
#include "topk/scans.h"

namespace {

using lookalike::detail::Scan;
using lookalike::detail::ScanFunction;

constexpr std::size_t kInCache = std::size_t{1} << 16;   // 256 KiB: in L2, not in L1
constexpr std::size_t kInMemory = std::size_t{1} << 26;  // 256 MiB: more than most last caches
// As TopK stages them: one lock of the reservoir for so many keys.
constexpr std::size_t kKeys = 2048;

struct Input {
  const float* scores;
  const std::uint8_t* skip;  // or null
  std::size_t size;
  float share;  // of the scores that pass
};

bool is_skipped(const Input& input, std::size_t row) {
  return input.skip != nullptr && ((input.skip[row / 8] >> (row % 8)) & 1) != 0;
}

void run(benchmark::State& state, ScanFunction scan_function, const Input& input) {
  std::array<lookalike::detail::Key, kKeys> keys;
  // Above 1 nothing passes; of the rows with the bound's own score at most row 0, whose key is the highest.
  const float bound = input.share > 0 ? 1 - input.share : 2;
  const lookalike::detail::Key threshold = lookalike::detail::make_key(bound, 0);
  std::size_t wanted = 0;
  for (std::size_t row = 0; row < input.size; ++row) {
    const bool passes = input.scores[row] > bound || (row == 0 && input.scores[row] == bound);
    wanted += passes && !is_skipped(input, row) ? 1 : 0;
  }
  std::size_t passed = 0;
  for (auto _ : state) {
    passed = 0;
    Scan scan{input.scores, input.size, 0, input.skip, threshold, keys.data(), keys.size()};
    while (scan.position < scan.size) {
      scan_function(scan);
      passed += scan.num_keys;
      scan.num_keys = 0;
      benchmark::ClobberMemory();
    }
  }
  if (passed != wanted) {
    state.SkipWithError("another number of scores passed than should");
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(input.size));
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) *
                          static_cast<std::int64_t>(input.size * sizeof(float)));
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  lookalike::bench::Scores scores(kInMemory);
  scores.fill(lookalike::bench::Order::kRandom, 1);
  const std::vector<std::uint8_t> skip = lookalike::bench::skip_one_percent(kInMemory, 1);
  for (const lookalike::SimdLevel level : lookalike::supported_simd_levels()) {
    const ScanFunction scan = lookalike::detail::kScans[static_cast<std::size_t>(level)];
    for (const auto& [place, size] : {std::pair{"cache", kInCache}, std::pair{"memory", kInMemory}}) {
      for (const bool skips : {false, true}) {
        for (const float share : {0.0F, 1e-4F, 1e-2F, 0.5F}) {
          char shown[16];
          std::snprintf(shown, sizeof shown, "%g", static_cast<double>(share));
          const std::string name =
              std::string(lookalike::name(level)) + '/' + place + (skips ? "/skip" : "") + "/pass:" + shown;
          const Input input{scores.all().data(), skips ? skip.data() : nullptr, size, share};
          benchmark::RegisterBenchmark(name.c_str(), run, scan, input)->UseRealTime();
        }
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
