// The checksum of saved files: CRC-32C (Castagnoli), as iSCSI, ext4 and others use it. It finds every change within 32
// consecutive bits, and misses one in 2^32 of the others. It is no protection from a forger.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace lookalike::detail {

/// 0xE3069283 for the characters "123456789". About 2 GB/s; the same on every processor.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> bytes) noexcept;

}  // namespace lookalike::detail
