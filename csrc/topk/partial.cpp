#include "topk/partial.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <string>

#include "lookalike/error.h"
#include "topk/crc32c.h"

namespace lookalike::detail {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie in memory");

// The first byte is in no text, so that no text is taken for a partial.
constexpr std::array<unsigned char, 8> kMagic = {0x89, 'L', 'A', 'L', 'T', 'O', 'P', 'K'};
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kHeaderSize = 88;
constexpr std::size_t kCountsOffset = 72;  // of `keys` and `samples`
constexpr std::size_t kChecksumSize = sizeof(std::uint32_t);
constexpr std::size_t kMinSize = kHeaderSize + kChecksumSize;

// Rows are numbered in 32 bits. No more keys or samples either: so a size computed from their numbers cannot overflow.
constexpr std::uint64_t kMaxRows = std::uint64_t{1} << 32;

/// Writes `values` to the front of `rest`, which must have room, and takes that off it.
template <class T>
void put_array(std::span<std::byte>& rest, std::span<const T> values) {
  if (!values.empty()) {
    std::memcpy(rest.data(), values.data(), values.size_bytes());
  }
  rest = rest.subspan(values.size_bytes());
}

template <class T>
void put(std::span<std::byte>& rest, const T& number) {
  put_array(rest, std::span<const T>(&number, 1));
}

/// Reads from the front of `rest`, which must hold that much, and takes that off it.
template <class T>
T take(std::span<const std::byte>& rest) {
  T number;
  std::memcpy(&number, rest.data(), sizeof(T));
  rest = rest.subspan(sizeof(T));
  return number;
}

template <class T>
Buffer<T> take_array(std::span<const std::byte>& rest, std::size_t count) {
  Buffer<T> array(count);
  if (count > 0) {
    std::memcpy(array.data(), rest.data(), count * sizeof(T));
  }
  rest = rest.subspan(count * sizeof(T));
  return array;
}

[[noreturn]] void refuse(const std::string& message) { throw DataCorrupted("partial", message); }

[[noreturn]] void refuse_truncated(std::size_t size, const std::string& expected) {
  refuse("the partial is truncated: it has " + std::to_string(size) + " bytes of " + expected +
         ": copy it again, or save it anew");
}

void check_magic_and_version(std::span<const std::byte> bytes) {
  const auto magic = std::as_bytes(std::span(kMagic));
  if (!std::ranges::equal(bytes.first(std::min(bytes.size(), magic.size())),
                          magic.first(std::min(bytes.size(), magic.size())))) {
    refuse("this is no partial top-K (it begins with other bytes): give the bytes that save returned");
  }
  auto rest = bytes.subspan(std::min(bytes.size(), magic.size()));
  if (rest.size() < sizeof(kVersion)) {
    refuse_truncated(bytes.size(), "at least " + std::to_string(kMinSize));
  }
  const auto version = take<std::uint32_t>(rest);
  if (version != kVersion) {
    refuse("the partial has format version " + std::to_string(version) + " and this library knows version " +
           std::to_string(kVersion) + ": load it with the library that saved it");
  }
}

/// The bytes must have exactly the length that their header asks for.
void check_size(std::span<const std::byte> bytes) {
  if (bytes.size() < kMinSize) {
    refuse_truncated(bytes.size(), "at least " + std::to_string(kMinSize));
  }
  auto rest = bytes.subspan(kMagic.size() + sizeof(kVersion));
  const auto header_size = take<std::uint32_t>(rest);
  if (header_size != kHeaderSize) {
    refuse("the partial's header has " + std::to_string(header_size) + " bytes by its own account and version " +
           std::to_string(kVersion) + " has " + std::to_string(kHeaderSize) + ": copy it again, or save it anew");
  }
  rest = bytes.subspan(kCountsOffset);
  const auto keys = take<std::uint64_t>(rest);
  const auto samples = take<std::uint64_t>(rest);
  if (keys > kMaxRows || samples > kMaxRows) {
    refuse("the partial claims " + std::to_string(keys) + " keys and " + std::to_string(samples) +
           " samples, and there can be 2^32 of each: copy it again, or save it anew");
  }
  const std::uint64_t expected = kMinSize + keys * sizeof(Key) + samples * sizeof(std::uint32_t);
  if (bytes.size() < expected) {
    refuse_truncated(bytes.size(), std::to_string(expected));
  }
  if (bytes.size() > expected) {
    refuse("the partial has " + std::to_string(bytes.size()) + " bytes where its header asks for " +
           std::to_string(expected) + ": give one partial and nothing after it");
  }
}

void check_checksum(std::span<const std::byte> bytes) {
  auto stored = bytes.last(kChecksumSize);
  if (take<std::uint32_t>(stored) != crc32c(bytes.first(bytes.size() - kChecksumSize))) {
    refuse("the partial fails its checksum, so it was changed since: copy it again, or save it anew");
  }
}

void require(bool possible, const char* otherwise) {
  if (!possible) {
    refuse(std::string("the partial's checksum is right but its values cannot be: ") + otherwise +
           "; save it anew, with this library");
  }
}

/// Whether `rank` is that of a score. NaN's lie beyond those of the infinities, and -0 has that of +0.
bool is_rank(std::uint32_t rank) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr std::uint32_t kNegativeZero = orderable(0.0F) - 1;
  return rank >= orderable(-kInfinity) && rank <= orderable(kInfinity) && rank != kNegativeZero;
}

void check_values(const PartialView& p) {
  require(p.num_rows <= kMaxRows, "num_rows is above 2^32");
  require(p.rows_seen <= p.num_rows, "more rows were seen than there are");
  require(p.rows_skipped <= p.rows_seen, "more rows were skipped than seen");
  require(p.nans <= p.rows_seen - p.rows_skipped, "more scores are NaN than rows were seen and not skipped");
  const std::uint64_t eligible = p.rows_seen - p.rows_skipped - p.nans;

  const auto has_score = [](Key key) { return is_rank(rank_of(key)); };
  const auto has_row = [&](Key key) { return row_of(key) < p.num_rows; };
  require(p.keys.size() <= p.k, "it has more than k keys");
  require(p.keys.size() <= eligible, "it has more keys than rows that could be selected");
  require(p.keys.size() == std::min(p.k, eligible), "it has fewer keys than rows that must be selected");
  require(std::ranges::adjacent_find(p.keys, std::ranges::less_equal()) == p.keys.end(), "its keys are not descending");
  require(std::ranges::all_of(p.keys, has_score), "a key's score is NaN or -0");
  require(std::ranges::all_of(p.keys, has_row), "a key's row is not below num_rows");

  require(p.tied_out == 0 || p.keys.size() == p.k, "rows are tied out although k were not selected");
  require(p.tied_out == 0 || p.k > 0, "rows are tied out with no key to tie with");
  require(p.tied_out <= eligible - p.keys.size(), "more rows are tied out than were not selected");

  const std::uint64_t stretches = p.stride == 0 ? 0 : p.num_rows / p.stride + (p.num_rows % p.stride != 0 ? 1 : 0);
  const auto score_or_none = [](std::uint32_t rank) { return rank == 0 || is_rank(rank); };
  require(p.sample.size() == stretches, "it has not one sample for each stretch of rows");
  require(std::ranges::all_of(p.sample, score_or_none), "a sampled score is NaN or -0");
  // There may be more scores than rows_seen tells: a push that goes on while this is saved notes them as it reads.
}

}  // namespace

std::vector<std::byte> encode(const PartialView& partial) {
  std::vector<std::byte> bytes(kMinSize + partial.keys.size_bytes() + partial.sample.size_bytes());
  std::span<std::byte> rest(bytes);
  put(rest, kMagic);
  put(rest, kVersion);
  put(rest, kHeaderSize);
  for (const std::uint64_t number :
       {partial.k, partial.num_rows, partial.rows_seen, partial.rows_skipped, partial.nans, partial.tied_out,
        partial.stride, std::uint64_t{partial.keys.size()}, std::uint64_t{partial.sample.size()}}) {
    put(rest, number);
  }
  put_array(rest, partial.keys);
  put_array(rest, partial.sample);
  put(rest, crc32c({bytes.data(), bytes.size() - kChecksumSize}));
  return bytes;
}

Partial decode(std::span<const std::byte> bytes) {
  check_magic_and_version(bytes);
  check_size(bytes);
  check_checksum(bytes);

  Partial partial;
  auto rest = bytes.subspan(kMagic.size() + sizeof(kVersion) + sizeof(kHeaderSize));
  for (std::uint64_t* number : {&partial.k, &partial.num_rows, &partial.rows_seen, &partial.rows_skipped, &partial.nans,
                                &partial.tied_out, &partial.stride}) {
    *number = take<std::uint64_t>(rest);
  }
  const auto keys = static_cast<std::size_t>(take<std::uint64_t>(rest));
  const auto samples = static_cast<std::size_t>(take<std::uint64_t>(rest));
  partial.keys = take_array<Key>(rest, keys);
  partial.sample = take_array<std::uint32_t>(rest, samples);
  check_values(partial.view());
  return partial;
}

}  // namespace lookalike::detail
