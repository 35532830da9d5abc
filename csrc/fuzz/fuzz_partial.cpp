// Fuzzes what reads a saved top-K. Every input is read as it is, then with its checksum put right, then with its sizes
// put right as well: mutations hardly get past these. What is not refused must come back as the same bytes and serve as
// a selection.
//
//   fuzz_partial CORPUS [libFuzzer's options]      writes a few whole partials into the folder CORPUS first
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lookalike/error.h"
#include "lookalike/topk.h"
#include "topk/crc32c.h"
#include "topk/partial.h"

namespace {

using lookalike::NanPolicy;
using lookalike::TopK;
using lookalike::TopKOptions;
using lookalike::detail::encode;
using lookalike::detail::Key;
using lookalike::detail::make_key;
using lookalike::detail::orderable;
using lookalike::detail::Partial;
using lookalike::detail::PartialView;

using Bytes = std::vector<std::byte>;

void must(bool condition, const char* what) {
  if (!condition) {
    std::fprintf(stderr, "must hold: %s\n", what);
    std::abort();
  }
}

// Offsets and sizes of the format, see partial.h.
constexpr std::size_t kHeaderSizeEnd = 16;
constexpr std::size_t kCounts = 72;
constexpr std::size_t kChecksum = sizeof(std::uint32_t);

/// Puts the magic, the version, the header's size and the checksum right.
void seal(Bytes& bytes) {
  const Bytes nothing = encode({});
  std::copy_n(nothing.begin(), kHeaderSizeEnd, bytes.begin());
  const std::size_t body = bytes.size() - kChecksum;
  const std::uint32_t checksum = lookalike::detail::crc32c({bytes.data(), body});
  std::memcpy(bytes.data() + body, &checksum, kChecksum);
}

/// Makes the numbers of keys and samples such as there is room for, and cuts off what is left of the room.
void fit(Bytes& bytes) {
  const std::size_t least = encode({}).size();
  std::array<std::uint64_t, 2> counts;  // keys, samples
  std::memcpy(counts.data(), bytes.data() + kCounts, sizeof(counts));
  const std::size_t room = bytes.size() - least;
  counts[0] = std::min<std::uint64_t>(counts[0], room / sizeof(Key));
  counts[1] = (room - counts[0] * sizeof(Key)) / sizeof(std::uint32_t);
  std::memcpy(bytes.data() + kCounts, counts.data(), sizeof(counts));
  bytes.resize(least + counts[0] * sizeof(Key) + counts[1] * sizeof(std::uint32_t));
}

void check_selection(const Partial& partial, TopK& top) {
  const auto selection = top.finish();
  const std::uint64_t eligible = partial.rows_seen - partial.rows_skipped - partial.nans;
  must(selection.rows.size() == std::min(partial.k, eligible), "as many are selected as can be");
  must(selection.rows.size() == partial.keys.size() && selection.scores.size() == partial.keys.size(),
       "as many are selected as there are keys");
  for (std::size_t i = 0; i < partial.keys.size(); ++i) {
    must(!std::isnan(selection.scores[i]), "NaN is not selected");
    must(make_key(selection.scores[i], selection.rows[i]) == partial.keys[i], "the keys saved are those selected");
  }
  const auto cutoff = top.cutoff();
  must(cutoff.has_value() == !partial.keys.empty(), "there is a cut-off where something is selected");
  must(!cutoff || cutoff->tied - cutoff->selected == partial.tied_out, "what was tied out stays so");
  must(top.rows_seen() == partial.rows_seen, "rows_seen");
  must(top.rows_skipped() == partial.rows_skipped, "rows_skipped");
  must(top.nan_count() == partial.nans, "nans");
}

/// To be gone on with: whatever comes of rows that were pushed before, it is no crash.
void go_on(const Partial& partial, TopK& top, const TopK& other) {
  const std::array<float, 3> scores = {1.0F, -1.0F, 1.0F};
  if (scores.size() <= partial.num_rows - partial.rows_seen) {
    top.push(scores, 0);
  }
  if (partial.rows_seen <= partial.num_rows - top.rows_seen()) {
    top.merge(other);
  }
  must(top.finish().rows.size() <= partial.k, "no more than k are selected");
  static_cast<void>(top.cutoff());
}

/// What can be decoded can be loaded; but the format does not know which stride goes with which number of rows.
std::optional<TopK> load(std::span<const std::byte> bytes, const TopKOptions& options) {
  try {
    return TopK::load(bytes, options);
  } catch (const std::exception& error) {
    must(options.distribution, error.what());
    return std::nullopt;
  }
}

void use(std::span<const std::byte> bytes, const Partial& partial) {
  const TopKOptions options{.num_rows = partial.num_rows, .nan = NanPolicy::kSkip, .distribution = partial.stride != 0};
  auto top = load(bytes, options);
  if (!top) {
    return;
  }
  check_selection(partial, *top);
  must(std::ranges::equal(top->save(), bytes), "what was loaded saves as the same bytes");
  if (options.distribution) {
    static_cast<void>(top->distribution());
  }
  TopK merged(partial.k, options);
  merged.merge(*top);
  must(std::ranges::equal(merged.save(), bytes), "merged into nothing, it saves as the same bytes");
  go_on(partial, merged, *top);
}

std::optional<Partial> decode(std::span<const std::byte> bytes) {
  try {
    return lookalike::detail::decode(bytes);
  } catch (const lookalike::DataCorrupted&) {
    return std::nullopt;
  }
}

void read(std::span<const std::byte> bytes) {
  if (const auto partial = decode(bytes)) {
    must(std::ranges::equal(encode(partial->view()), bytes), "what was decoded encodes as the same bytes");
    use(bytes, *partial);
  }
}

void write_seeds(const std::filesystem::path& folder) {
  const std::vector<Key> keys = {make_key(2.0F, 4), make_key(0.0F, 1), make_key(0.0F, 7)};
  const std::vector<std::uint32_t> sample = {orderable(0.5F),  orderable(-0.5F), 0,
                                             orderable(-1.0F), orderable(2.0F),  orderable(-0.5F)};
  const PartialView seeds[] = {
      {},
      {.k = 0, .num_rows = 10, .rows_seen = 10},
      {.k = 5, .num_rows = std::uint64_t{1} << 32},
      {.k = 9, .num_rows = 100, .rows_seen = 5, .rows_skipped = 1, .nans = 1, .keys = keys},
      {.k = 3, .num_rows = 8, .rows_seen = 8, .rows_skipped = 1, .tied_out = 2, .keys = keys},
      {.k = 1, .num_rows = 6, .rows_seen = 5, .keys = std::span(keys).first(1), .stride = 1, .sample = sample},
  };
  for (std::size_t i = 0; i < std::size(seeds); ++i) {
    const Bytes bytes = encode(seeds[i]);
    std::ofstream file(folder / ("seed" + std::to_string(i)), std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    must(file.good(), "the corpus folder can be written to");
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  for (int i = 1; i < *argc; ++i) {
    if (std::filesystem::is_directory((*argv)[i])) {
      write_seeds((*argv)[i]);
      break;
    }
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  read(bytes);
  Bytes mended(bytes.begin(), bytes.end());
  mended.resize(std::max(mended.size(), encode({}).size()));
  seal(mended);
  read(mended);
  fit(mended);
  seal(mended);
  read(mended);
  return 0;
}
