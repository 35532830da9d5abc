// What is refused and why; and that what is not refused comes back as it was.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "lookalike/error.h"
#include "topk/crc32c.h"
#include "topk/partial.h"

using lookalike::DataCorrupted;
using lookalike::detail::crc32c;
using lookalike::detail::decode;
using lookalike::detail::encode;
using lookalike::detail::Key;
using lookalike::detail::make_key;
using lookalike::detail::orderable;
using lookalike::detail::Partial;
using lookalike::detail::PartialView;

using Bytes = std::vector<std::byte>;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::uint64_t kMaxRows = std::uint64_t{1} << 32;
constexpr std::uint64_t kMaxU64 = std::numeric_limits<std::uint64_t>::max();

/// Seven of ten rows could be selected, and three were.
Partial small() {
  Partial partial{.k = 3, .num_rows = 10, .rows_seen = 9, .rows_skipped = 1, .nans = 1, .tied_out = 2, .stride = 4};
  partial.keys = {make_key(2.0F, 4), make_key(-0.5F, 1), make_key(-0.5F, 7)};
  partial.sample = {orderable(2.0F), 0, orderable(-kInfinity)};
  return partial;
}

/// The bytes with `value` at `offset`.
template <class T>
Bytes patch(Bytes bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
  return bytes;
}

/// The bytes with their checksum put right.
Bytes seal(const Bytes& bytes) {
  const std::size_t body = bytes.size() - 4;
  return patch(bytes, body, crc32c({bytes.data(), body}));
}

Bytes first(const Bytes& bytes, std::size_t size) {
  return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)};
}

std::string refusal(const Bytes& bytes) {
  try {
    static_cast<void>(decode(bytes));
  } catch (const DataCorrupted& error) {
    return error.what();
  }
  return "not refused";
}

bool refused(const Bytes& bytes, const std::string& part) { return refusal(bytes).find(part) != std::string::npos; }

void check_round_trip(const PartialView& partial, const std::string& context) {
  const Bytes bytes = encode(partial);
  const Partial back = decode(bytes);
  CHECK_EQUAL_IN(back.k, partial.k, context);
  CHECK_EQUAL_IN(back.num_rows, partial.num_rows, context);
  CHECK_EQUAL_IN(back.rows_seen, partial.rows_seen, context);
  CHECK_EQUAL_IN(back.rows_skipped, partial.rows_skipped, context);
  CHECK_EQUAL_IN(back.nans, partial.nans, context);
  CHECK_EQUAL_IN(back.tied_out, partial.tied_out, context);
  CHECK_EQUAL_IN(back.stride, partial.stride, context);
  CHECK_EQUAL_IN(std::ranges::equal(back.keys, partial.keys), true, context);
  CHECK_EQUAL_IN(std::ranges::equal(back.sample, partial.sample), true, context);
  CHECK_EQUAL_IN(encode(back.view()) == bytes, true, context);
}

/// That `change` makes the small partial one that cannot be.
template <class Change>
void check_impossible(const std::string& message, Change change) {
  Partial partial = small();
  change(partial);
  const Bytes bytes = encode(partial.view());
  CHECK_EQUAL_IN(refused(bytes, "its values cannot be: " + message + "; "), true, message + ": " + refusal(bytes));
}

}  // namespace

TEST(crc32c_is_castagnolis) {
  const std::string digits = "123456789";
  CHECK_EQUAL(crc32c(std::as_bytes(std::span(digits))), 0xE3069283U);
  CHECK_EQUAL(crc32c({}), 0U);
  CHECK_EQUAL(crc32c(Bytes(32)), 0x8A9136AAU);                   // RFC 3720, B.4
  CHECK_EQUAL(crc32c(Bytes(32, std::byte{0xFF})), 0x62A8AB43U);  // RFC 3720, B.4
}

TEST(crc32c_agrees_with_its_definition_for_every_length_and_alignment) {
  Bytes bytes(80);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(i * 151 + 7);
  }
  for (std::size_t begin = 0; begin < 8; ++begin) {
    std::uint32_t crc = 0xFFFFFFFF;
    for (std::size_t end = begin; end < bytes.size(); ++end) {
      CHECK_EQUAL_IN(crc32c({bytes.data() + begin, end - begin}), ~crc, "bytes: " + std::to_string(end - begin));
      crc ^= static_cast<std::uint32_t>(bytes[end]);
      for (int bit = 0; bit < 8; ++bit) {
        crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78U : 0U);
      }
    }
  }
}

TEST(what_is_saved_comes_back) {
  check_round_trip(small().view(), "small");
  check_round_trip({}, "nothing");
  check_round_trip({.k = 5, .num_rows = kMaxRows}, "nothing pushed");
  check_round_trip({.k = 0, .num_rows = 10, .rows_seen = 10}, "k = 0");
  check_round_trip({.k = 5, .num_rows = 10, .rows_seen = 8, .rows_skipped = 5, .nans = 3}, "no row selected");

  const std::vector<Key> extremes = {make_key(kInfinity, 0xFFFFFFFF), make_key(0.0F, 0), make_key(-kInfinity, 5)};
  check_round_trip({.k = 3, .num_rows = kMaxRows, .rows_seen = kMaxRows, .tied_out = kMaxRows - 3, .keys = extremes},
                   "extremes");
  check_round_trip({.k = kMaxU64, .num_rows = kMaxRows, .rows_seen = 3, .keys = extremes}, "fewer rows than k");

  const std::vector<std::uint32_t> sample = {orderable(kInfinity), 0, orderable(0.0F), orderable(-kInfinity)};
  check_round_trip({.num_rows = 4, .rows_seen = 3, .stride = 1, .sample = sample}, "every row sampled");
  check_round_trip({.num_rows = 4, .stride = 1, .sample = sample}, "sampled by a push under way");
  check_round_trip({.num_rows = kMaxRows, .rows_seen = 3, .stride = kMaxRows / 4, .sample = sample}, "long stretches");
  check_round_trip({.num_rows = 4, .rows_seen = 1, .stride = kMaxU64, .sample = std::span(sample).first(1)},
                   "a stretch longer than all rows");

  std::vector<Key> many;
  for (std::uint32_t row = 0; row < 400'000; ++row) {
    many.push_back(make_key(-static_cast<float>(row / 3), row));
  }
  check_round_trip({.k = many.size(), .num_rows = 500'000, .rows_seen = 450'000, .tied_out = 2, .keys = many}, "many");
}

// Version 1 as partial.h documents it: what was saved once must stay readable.
TEST(version_1_is_as_documented) {
  const std::string expected =
      "894c414c544f504b"                                  // magic
      "0100000058000000"                                  // version, header size
      "0300000000000000"                                  // k
      "0a00000000000000"                                  // num_rows
      "0900000000000000"                                  // rows_seen
      "0100000000000000"                                  // rows_skipped
      "0100000000000000"                                  // nans
      "0200000000000000"                                  // tied_out
      "0400000000000000"                                  // stride
      "0300000000000000"                                  // keys
      "0300000000000000"                                  // samples
      "fbffffff000000c0feffffffffffff40f8ffffffffffff40"  // 2 of row 4, -0.5 of row 1, -0.5 of row 7
      "000000c000000000ffff7f00"                          // 2, none, -inf
      "fc1f79f4";                                         // CRC-32C
  std::string hex;
  for (const std::byte byte : encode(small().view())) {
    constexpr char kDigits[] = "0123456789abcdef";
    hex += kDigits[static_cast<unsigned>(byte) >> 4];
    hex += kDigits[static_cast<unsigned>(byte) & 15];
  }
  CHECK_EQUAL(hex, expected);
}

TEST(bytes_may_lie_anywhere) {
  const Bytes bytes = encode(small().view());
  for (std::size_t shift = 1; shift < 8; ++shift) {
    Bytes shifted(shift);
    shifted.insert(shifted.end(), bytes.begin(), bytes.end());
    CHECK(encode(decode(std::span(shifted).subspan(shift)).view()) == bytes);
  }
}

TEST(every_changed_byte_is_noticed) {
  const Bytes bytes = encode(small().view());
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (unsigned change = 1; change < 256; ++change) {
      const Bytes changed = patch(bytes, i, bytes[i] ^ static_cast<std::byte>(change));
      CHECK_EQUAL_IN(refused(changed, "not refused"), false, "byte " + std::to_string(i));
    }
  }
  CHECK(refused(patch(bytes, 16, '\4'), "fails its checksum"));
  CHECK(refused(patch(bytes, bytes.size() - 1, '\4'), "fails its checksum"));
}

TEST(every_missing_byte_is_noticed) {
  const Bytes bytes = encode(small().view());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const std::string expected = size < 92 ? "at least 92" : "128";
    const std::string message = "truncated: it has " + std::to_string(size) + " bytes of " + expected + ": ";
    CHECK_EQUAL_IN(refused(first(bytes, size), message), true, refusal(first(bytes, size)));
  }
}

TEST(what_follows_a_partial_is_noticed) {
  const Bytes bytes = encode(small().view());
  Bytes longer = bytes;
  longer.insert(longer.end(), bytes.begin(), bytes.end());
  CHECK(refused(longer, "256 bytes where its header asks for 128"));
  longer.resize(bytes.size() + 1);
  CHECK(refused(longer, "129 bytes where its header asks for 128"));
  CHECK(refused(seal(longer), "129 bytes where its header asks for 128"));
}

TEST(foreign_bytes_are_noticed) {
  for (const std::string text : {"P", "PAR1", "LALTOPK", "\x89LALTOPX", "\x89PNG\r\n\x1a\n"}) {
    const auto bytes = std::as_bytes(std::span(text));
    CHECK_EQUAL_IN(refusal({bytes.begin(), bytes.end()}).starts_with("this is no partial top-K"), true, text);
  }
  CHECK(refused(Bytes(1000), "this is no partial top-K"));
}

// Whatever else is wrong, and whatever a later version looks like.
TEST(another_version_is_named) {
  const Bytes later = patch(encode(small().view()), 8, std::uint32_t{2});
  for (const Bytes& bytes : {later, seal(later), first(later, 12), patch(later, 12, std::uint32_t{96})}) {
    CHECK(refused(bytes, "has format version 2 and this library knows version 1"));
  }
  CHECK(refused(patch(later, 8, std::uint32_t{0}), "has format version 0"));
}

TEST(sizes_that_cannot_be_are_refused_before_anything_is_allocated) {
  const Bytes bytes = encode(small().view());
  CHECK(refused(seal(patch(bytes, 12, std::uint32_t{96})), "header has 96 bytes"));
  for (const std::size_t offset : {72U, 80U}) {
    for (const std::uint64_t count : {kMaxU64, std::uint64_t{1} << 61, kMaxRows + 1}) {
      CHECK(refused(seal(patch(bytes, offset, count)), "claims"));
    }
  }
  CHECK(refused(seal(patch(bytes, 72, kMaxRows)), "truncated: it has 128 bytes of 34359738472: "));
  CHECK(refused(seal(patch(bytes, 80, kMaxRows)), "truncated: it has 128 bytes of 17179869300: "));
  CHECK(refused(seal(patch(bytes, 72, std::uint64_t{2})), "128 bytes where its header asks for 120"));
}

TEST(the_error_names_the_field) {
  try {
    static_cast<void>(decode({}));
    CHECK(false);
  } catch (const DataCorrupted& error) {
    CHECK_EQUAL(error.field(), "partial");
  }
}

TEST(counts_that_cannot_be_are_refused) {
  check_impossible("num_rows is above 2^32", [](Partial& p) { p.num_rows = kMaxRows + 1; });
  check_impossible("more rows were seen than there are", [](Partial& p) { p.rows_seen = 11; });
  check_impossible("more rows were skipped than seen", [](Partial& p) { p.rows_skipped = 10; });
  check_impossible("more scores are NaN than rows were seen and not skipped", [](Partial& p) { p.nans = 9; });
  check_impossible("more scores are NaN than rows were seen and not skipped", [](Partial& p) { p.nans = kMaxU64; });

  check_impossible("it has more than k keys", [](Partial& p) { p.k = 2; });
  check_impossible("it has more keys than rows that could be selected", [](Partial& p) { p.rows_skipped = 6; });
  check_impossible("it has fewer keys than rows that must be selected", [](Partial& p) { p.k = 4; });
  check_impossible("it has fewer keys than rows that must be selected", [](Partial& p) {
    p.k = kMaxU64;
    p.rows_skipped = 4;
  });

  check_impossible("rows are tied out although k were not selected", [](Partial& p) {
    p.k = 4;
    p.rows_skipped = 5;
    p.tied_out = 1;
  });
  check_impossible("rows are tied out with no key to tie with", [](Partial& p) {
    p.k = 0;
    p.keys.clear();
  });
  check_impossible("more rows are tied out than were not selected", [](Partial& p) { p.tied_out = 5; });
}

TEST(keys_that_cannot_be_are_refused) {
  const auto check = [](const std::string& message, std::size_t index, Key key) {
    check_impossible(message, [&](Partial& p) { p.keys[index] = key; });
  };
  const auto with_rank = [](std::uint32_t rank) { return (Key{rank} << 32) | 0xFFFFFFFF; };
  check("its keys are not descending", 0, make_key(-0.5F, 2));
  check("its keys are not descending", 1, make_key(2.0F, 4));
  check("its keys are not descending", 2, make_key(-0.5F, 0));
  check("a key's score is NaN or -0", 0, with_rank(orderable(kInfinity) + 1));
  check("a key's score is NaN or -0", 0, with_rank(0xFFFFFFFF));
  check("a key's score is NaN or -0", 1, with_rank(orderable(0.0F) - 1));
  check("a key's score is NaN or -0", 2, with_rank(orderable(-kInfinity) - 1));
  check("a key's score is NaN or -0", 2, lookalike::detail::kBelowAll);
  check("a key's row is not below num_rows", 0, make_key(2.0F, 10));
  check("a key's row is not below num_rows", 2, make_key(-0.5F, 0xFFFFFFFF));
}

TEST(samples_that_cannot_be_are_refused) {
  const std::string number = "it has not one sample for each stretch of rows";
  check_impossible(number, [](Partial& p) { p.stride = 0; });
  check_impossible(number, [](Partial& p) { p.stride = 3; });
  check_impossible(number, [](Partial& p) { p.stride = 5; });
  check_impossible(number, [](Partial& p) { p.stride = kMaxU64; });
  check_impossible(number, [](Partial& p) { p.sample.pop_back(); });
  for (const std::uint32_t rank :
       {orderable(kInfinity) + 1, 0xFFFFFFFFU, orderable(0.0F) - 1, orderable(-kInfinity) - 1, 1U}) {
    check_impossible("a sampled score is NaN or -0", [&](Partial& p) { p.sample[1] = rank; });
  }
}

int main() { return check::run(); }
