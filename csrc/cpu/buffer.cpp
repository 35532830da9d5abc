#include "lookalike/buffer.h"

#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lookalike::detail {

#if defined(__linux__)

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// From here on a buffer is mapped by itself. The heap would keep what one thread has given back for that thread alone,
// and many threads would hold many times what is in use.
constexpr std::size_t kMapped = std::size_t{128} << 10;

void* map(std::size_t bytes) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) {
    throw std::bad_alloc();
  }
  return pages;
}

/// Begins with a huge page. What was mapped around it to find one is unmapped again.
void* map_huge(std::size_t bytes) {
  auto* mapped = static_cast<char*>(map(bytes + kHugePage));
  const std::size_t before = (kHugePage - reinterpret_cast<std::uintptr_t>(mapped) % kHugePage) % kHugePage;
  if (before > 0) {
    munmap(mapped, before);
  }
  munmap(mapped + before + bytes, kHugePage - before);
  // A wish: where it is not granted, small pages do as well.
  madvise(mapped + before, bytes, MADV_HUGEPAGE);
  return mapped + before;
}

/// munmap wants whole pages, and so do its neighbours.
std::size_t whole_pages(std::size_t bytes) {
  constexpr std::size_t kPage = std::size_t{64} << 10;  // the largest page of any Linux that the core runs on
  if (bytes > SIZE_MAX - kHugePage - kPage) {
    throw std::bad_alloc();
  }
  return (bytes + kPage - 1) / kPage * kPage;
}

}  // namespace

void* allocate_pages(std::size_t bytes) {
  if (bytes < kMapped) {
    return ::operator new(bytes);
  }
  const std::size_t whole = whole_pages(bytes);
  return whole < kHugePage ? map(whole) : map_huge(whole);
}

void free_pages(void* pages, std::size_t bytes) noexcept {
  if (bytes < kMapped) {
    ::operator delete(pages);
  } else {
    munmap(pages, whole_pages(bytes));
  }
}

#else

void* allocate_pages(std::size_t bytes) { return ::operator new(bytes); }
void free_pages(void* pages, std::size_t /*bytes*/) noexcept { ::operator delete(pages); }

#endif

}  // namespace lookalike::detail
