#include "bench/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <thread>

namespace lookalike::bench {
namespace {

// A limit that catches a slip of the hand before the system refuses the threads.
constexpr double kMaxThreads = 1024;
constexpr double kMaxRows = 4294967296.0;
constexpr double kMaxRepeat = 1000;

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t comma = list.find(','); comma != std::string::npos; comma = list.find(',', begin)) {
    parts.push_back(list.substr(begin, comma - begin));
    begin = comma + 1;
  }
  parts.push_back(list.substr(begin));
  return parts;
}

/// A whole number in least .. most; also as 1e9.
std::uint64_t number(const std::string& flag, const std::string& text, double least, double most) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stopped != end || !(value >= least && value <= most) || value != std::floor(value)) {
    throw BadOption(flag + " wants whole numbers from " + std::to_string(static_cast<std::uint64_t>(least)) + " to " +
                    std::to_string(static_cast<std::uint64_t>(most)) + ", such as 1e6, not '" + text + "'");
  }
  return static_cast<std::uint64_t>(value);
}

Order order(const std::string& text) {
  std::string known;
  for (const Order candidate : all_orders()) {
    if (name(candidate) == text) {
      return candidate;
    }
    known += (known.empty() ? "" : ", ") + std::string(name(candidate));
  }
  throw BadOption("--orders wants some of " + known + ", not '" + text + "'");
}

void set(Options& options, const std::string& flag, const std::string& value) {
  if (flag == "--rows") {
    options.rows = number(flag, value, 1, kMaxRows);
  } else if (flag == "--threads") {
    options.threads.clear();
    for (const std::string& part : split(value)) {
      options.threads.push_back(static_cast<unsigned>(number(flag, part, 1, kMaxThreads)));
    }
  } else if (flag == "--k") {
    options.k.clear();
    for (const std::string& part : split(value)) {
      options.k.push_back(number(flag, part, 1, kMaxRows));
    }
  } else if (flag == "--orders") {
    options.orders.clear();
    for (const std::string& part : split(value)) {
      options.orders.push_back(order(part));
    }
  } else if (flag == "--repeat") {
    options.repeat = static_cast<unsigned>(number(flag, value, 1, kMaxRepeat));
  } else if (flag == "--baseline-rows") {
    options.baseline_rows = number(flag, value, 0, kMaxRows);
  } else if (flag == "--only") {
    options.only = value;
  } else {
    throw BadOption("there is no flag " + flag + "; --help lists them");
  }
}

}  // namespace

const char* const kUsage =
    R"(bench_topk: times the top-K beside a plain scan for the maximum of the same scores in memory.

Writes one JSON object a line to stdout, of the machine first and then of each case, and its progress to stderr. Ends
with 1 if a selection is wrong, with 2 if a flag is.

  --rows N               scores, 4 bytes each (1e9)
  --threads T[,T...]     threads of a case (1 and all the machine has); the last is taken where one count is enough
  --k K[,K...]           selections in memory, streamed and saved (1e3,1e5,1e6,1e7)
  --orders NAME[,...]    random, ascending, descending, equal, few, clustered, last (all)
  --repeat R             times each case is run, of which the median counts (5)
  --baseline-rows N      scores for the standard library's heap and nth_element; 0 leaves them out (2e8)
  --only PART            the cases with PART in their name, such as memory/random or k=1000/
)";

Options parse_options(const std::vector<std::string>& arguments) {
  Options options;
  const unsigned machine = std::max(1U, std::thread::hardware_concurrency());
  options.threads = machine == 1 ? std::vector<unsigned>{1} : std::vector<unsigned>{1, machine};
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--help") {
      options.help = true;
      return options;
    }
    const std::size_t equals = arguments[i].find('=');
    if (equals != std::string::npos) {
      set(options, arguments[i].substr(0, equals), arguments[i].substr(equals + 1));
    } else if (i + 1 < arguments.size()) {
      set(options, arguments[i], arguments[i + 1]);
      ++i;
    } else {
      throw BadOption(arguments[i] + " wants a value; --help lists the flags");
    }
  }
  return options;
}

}  // namespace lookalike::bench
