#include "topk/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

namespace lookalike::detail {
namespace {

static_assert(std::endian::native == std::endian::little, "eight bytes are read as one little-endian number");

// Castagnoli's polynomial, lowest power in the highest bit.
constexpr std::uint32_t kPolynomial = 0x82F63B78;

// Slicing by 8: eight bytes a step, each looked up for itself. With one table every byte waits for the one before, at a
// fifth of the speed; sixteen would fill half of a 32 KiB L1 cache, to gain on what takes 30 ms of ten million keys.
constexpr std::size_t kSlices = 8;
using Tables = std::array<std::array<std::uint32_t, 256>, kSlices>;

/// tables[s][b]: what byte b does to the checksum when s more bytes follow in its step.
constexpr Tables make_tables() {
  Tables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    }
    tables[0][byte] = crc;
  }
  for (std::size_t slice = 1; slice < kSlices; ++slice) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t crc = tables[slice - 1][byte];
      tables[slice][byte] = (crc >> 8) ^ tables[0][crc & 0xFF];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes) noexcept {
  std::uint32_t crc = 0xFFFFFFFF;
  const std::byte* next = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= kSlices; next += kSlices, left -= kSlices) {
    std::uint64_t step;
    std::memcpy(&step, next, sizeof(step));
    step ^= crc;
    crc = 0;
    for (std::size_t i = 0; i < kSlices; ++i) {
      crc ^= kTables[kSlices - 1 - i][(step >> (8 * i)) & 0xFF];
    }
  }
  for (; left > 0; ++next, --left) {
    crc = (crc >> 8) ^ kTables[0][(crc ^ static_cast<std::uint32_t>(*next)) & 0xFF];
  }
  return ~crc;
}

}  // namespace lookalike::detail
