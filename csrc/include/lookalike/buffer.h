// A std::vector for millions of numbers: what resize adds is not initialised, and large blocks lie in huge pages where
// the system has them, so that filling them does not stop at every 4 KiB.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace lookalike {

namespace detail {

/// Throws std::bad_alloc.
[[nodiscard]] void* allocate_pages(std::size_t bytes);
void free_pages(void* pages, std::size_t bytes) noexcept;

template <class T>
struct BufferAllocator {
  static_assert(std::is_trivial_v<T>);
  using value_type = T;

  BufferAllocator() noexcept = default;
  template <class U>
  BufferAllocator(const BufferAllocator<U>& /*other*/) noexcept {}  // NOLINT: allocators convert

  [[nodiscard]] T* allocate(std::size_t count) { return static_cast<T*>(allocate_pages(count * sizeof(T))); }
  void deallocate(T* pointer, std::size_t count) noexcept { free_pages(pointer, count * sizeof(T)); }

  template <class U>
  void construct(U* pointer) noexcept {
    ::new (static_cast<void*>(pointer)) U;
  }
  template <class U, class... Arguments>
  void construct(U* pointer, Arguments&&... arguments) {
    std::construct_at(pointer, std::forward<Arguments>(arguments)...);
  }

  friend bool operator==(const BufferAllocator&, const BufferAllocator&) noexcept { return true; }
};

}  // namespace detail

template <class T>
using Buffer = std::vector<T, detail::BufferAllocator<T>>;

}  // namespace lookalike
