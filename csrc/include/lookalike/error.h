// What the library throws, beside std::bad_alloc. Python sees the same names (lookalike.errors).
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace lookalike {

/// An argument is wrong. what() names the fix, field() the argument as the caller spelled it.
class InvalidInput : public std::invalid_argument {
 public:
  InvalidInput(std::string field, const std::string& message)
      : std::invalid_argument(message), field_(std::move(field)) {}

  [[nodiscard]] const std::string& field() const noexcept { return field_; }

 private:
  std::string field_;
};

/// Saved bytes are truncated, changed, foreign, or of a version this library does not know. what() names the fix,
/// field() what the bytes were to be.
class DataCorrupted : public std::runtime_error {
 public:
  DataCorrupted(std::string field, const std::string& message)
      : std::runtime_error(message), field_(std::move(field)) {}

  [[nodiscard]] const std::string& field() const noexcept { return field_; }

 private:
  std::string field_;
};

}  // namespace lookalike
