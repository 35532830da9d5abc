#include "lookalike/buffer.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lookalike::detail {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

}  // namespace

void* allocate_pages(std::size_t bytes) {
  if (bytes < kHugePage) {
    return ::operator new(bytes);
  }
  void* pages = ::operator new(bytes, std::align_val_t{kHugePage});
#if defined(__linux__)
  // A wish: where it is not granted, small pages do as well.
  madvise(pages, bytes, MADV_HUGEPAGE);
#endif
  return pages;
}

void free_pages(void* pages, std::size_t bytes) noexcept {
  if (bytes < kHugePage) {
    ::operator delete(pages);
  } else {
    ::operator delete(pages, std::align_val_t{kHugePage});
  }
}

}  // namespace lookalike::detail
