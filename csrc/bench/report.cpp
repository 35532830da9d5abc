#include "bench/report.h"

#include <algorithm>
#include <concepts>
#include <cstdio>
#include <fstream>
#include <string_view>
#include <thread>

#include "lookalike/cpu.h"
#include "lookalike/version.h"

namespace lookalike::bench {
namespace {

/// An object of names and values, in the order they are added.
class Json {
 public:
  Json& add(std::string_view key, std::string_view text) { return raw(key, quoted(text)); }
  Json& add(std::string_view key, const char* text) { return add(key, std::string_view(text)); }
  Json& add(std::string_view key, bool value) { return raw(key, value ? "true" : "false"); }
  Json& add(std::string_view key, std::integral auto value) { return raw(key, std::to_string(value)); }
  Json& add(std::string_view key, double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value);
    return raw(key, text);
  }
  Json& add(std::string_view key, const Json& object) { return raw(key, object.text()); }
  template <class Value>
  Json& add(std::string_view key, const std::optional<Value>& value) {
    return value ? add(key, *value) : raw(key, "null");
  }

  [[nodiscard]] std::string text() const { return "{" + members_ + "}"; }

 private:
  static std::string quoted(std::string_view text) {
    std::string result = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') {
        result += '\\';
      }
      result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return result + "\"";
  }

  Json& raw(std::string_view key, std::string_view value) {
    members_.append(members_.empty() ? "" : ", ").append(quoted(key)).append(": ").append(value);
    return *this;
  }

  std::string members_;
};

Json spread(const std::vector<double>& seconds) {
  const auto [least, most] = std::minmax_element(seconds.begin(), seconds.end());
  return Json().add("median", median(seconds)).add("min", *least).add("max", *most);
}

std::optional<Json> spread_if_any(const std::vector<double>& seconds) {
  return seconds.empty() ? std::nullopt : std::optional(spread(seconds));
}

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string compiler() {
#if defined(__clang__)
  return __VERSION__;  // names itself
#else
  return std::string("GCC ") + __VERSION__;
#endif
}

template <class Value>
std::optional<Value> unless_zero(Value value) {
  return value == 0 ? std::nullopt : std::optional(value);
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::string to_json(const Result& result) {
  const Case& measured = result.measured;
  const double ours = median(result.ours);
  const double scan = median(result.scan);
  const double gigabytes = static_cast<double>(measured.rows * sizeof(float)) / 1e9;
  const bool all = measured.reads_all_scores();
  char checksum[17];
  std::snprintf(checksum, sizeof checksum, "%016llx", static_cast<unsigned long long>(result.checksum));
  const auto reference = measured.reference();
  Json json;
  json.add("case", measured.name()).add("kind", name(measured.kind)).add("order", name(measured.order));
  json.add("rows", measured.rows).add("k", measured.k).add("threads", measured.threads);
  json.add("producers", unless_zero(measured.producers)).add("chunk", unless_zero(measured.chunk));
  json.add("repeat", result.ours.size());
  json.add("seconds", spread(result.ours)).add("scan_seconds", spread(result.scan)).add("ratio", ours / scan);
  json.add("gb_per_second", all ? std::optional(gigabytes / ours) : std::nullopt);
  json.add("scan_gb_per_second", gigabytes / scan);
  json.add("reference", reference ? std::optional(reference->name()) : std::nullopt);
  json.add("reference_seconds", spread_if_any(result.reference));
  json.add("reference_ratio", reference ? std::optional(ours / median(result.reference)) : std::nullopt);
  json.add("selected", result.selected).add("checksum", checksum);
  json.add("extra_bytes", result.extra_bytes).add("extra_bytes_limit", measured.extra_bytes_limit());
  json.add("saved_bytes", result.saved_bytes).add("distribution_seconds", spread_if_any(result.distribution));
  return json.text();
}

std::string environment_json(const Options& options, bool huge_pages_advised) {
  Json json;
  json.add("lookalike", LOOKALIKE_VERSION).add("compiler", compiler());
  json.add("simd_level", lookalike::name(simd_level()));
  json.add("hardware_threads", std::thread::hardware_concurrency());
  json.add("rows", options.rows).add("array_bytes", options.rows * sizeof(float));
  json.add("huge_pages_advised", huge_pages_advised);
  json.add("huge_pages_setting", first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
  return Json().add("environment", json).text();
}

}  // namespace lookalike::bench
