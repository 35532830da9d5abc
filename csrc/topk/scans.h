// The scan at every level, for choose. Apart from scan.h, which the kernels themselves include.
#pragma once

#include "cpu/dispatch.h"
#include "topk/scan.h"

namespace lookalike::detail {

#if defined(__x86_64__)
inline constexpr ScanFunction kScans[] = {scan_scalar, scan_avx2, scan_avx512, scan_avx512, nullptr};
#elif defined(__aarch64__)
inline constexpr ScanFunction kScans[] = {scan_scalar, nullptr, nullptr, nullptr, scan_neon};
#else
inline constexpr ScanFunction kScans[] = {scan_scalar, nullptr, nullptr, nullptr, nullptr};
#endif

}  // namespace lookalike::detail
