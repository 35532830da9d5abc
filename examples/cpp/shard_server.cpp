// The best users of a pool that is too large for one machine: how a service of somebody else's embeds the selection.
//
// Each machine holds the embedding vectors of a stretch of the pool's rows. It scores them by a model of its own (here
// the sigmoid of a dot product with the campaign's vector) and saves its partial selection; another merges these:
//
//   shard_server score campaign=c.f32 vectors=0.f32 first_row=0    num_rows=9000 k=100 skip=s.bits partial=0.topk
//   shard_server score campaign=c.f32 vectors=1.f32 first_row=5000 num_rows=9000 k=100 skip=s.bits partial=1.topk
//   shard_server merge num_rows=9000 0.topk 1.topk
//
// All files are raw: float32 (the campaign's vector, the users' one after the other), and a bitmap of the rows never to
// be selected (the seeds, say), in which row r is bit r & 7 of byte r >> 3; skip= may be left out.
#include <lookalike/topk.h>
#include <lookalike/version.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <future>
#include <iomanip>
#include <iostream>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

// Scores in a push: 256 KiB, so that they are still in the cache when the selection reads them, and enough that what a
// push costs by itself does not show.
constexpr std::size_t kBlock = std::size_t{1} << 16;

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// --- The command line and files: nothing of the library here. -------------------------------------------------------

using Arguments = std::map<std::string, std::string>;

const std::string& argument(const Arguments& arguments, const std::string& name) {
  const auto found = arguments.find(name);
  if (found == arguments.end()) {
    throw UsageError(name + "= is missing");
  }
  return found->second;
}

std::uint64_t number(const Arguments& arguments, const std::string& name) {
  const std::string& text = argument(arguments, name);
  const char* end = text.data() + text.size();
  std::uint64_t value = 0;
  if (const auto parsed = std::from_chars(text.data(), end, value); parsed.ec != std::errc{} || parsed.ptr != end) {
    throw UsageError(name + "=" + text + " is not a number");
  }
  return value;
}

template <class T>
std::vector<T> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file.tellg();
  if (!file || size % static_cast<std::streamoff>(sizeof(T)) != 0) {
    throw std::runtime_error(path + (file ? ": not a whole number of elements" : ": cannot be read"));
  }
  std::vector<T> values(static_cast<std::size_t>(size) / sizeof(T));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(values.data()), size)) {
    throw std::runtime_error(path + ": cannot be read");
  }
  return values;
}

// Written beside and renamed, so that the coordinator never finds half a partial. (It would refuse it.)
void write_file(const std::string& path, std::span<const std::byte> bytes) {
  const std::string beside = path + ".part";
  std::ofstream file(beside, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file || std::rename(beside.c_str(), path.c_str()) != 0) {
    throw std::runtime_error(path + ": cannot be written");
  }
}

// --- A worker: scores its shard. ------------------------------------------------------------------------------------

// The model: `scores` of as many users, from `first` of the shard on.
void score(std::span<const float> campaign, std::span<const float> vectors, std::size_t first,
           std::span<float> scores) {
  const float* user = vectors.data() + first * campaign.size();
  for (float& value : scores) {
    float dot = 0;
    for (const float weight : campaign) {
      dot += weight * *user++;
    }
    value = 1 / (1 + std::exp(-dot));
  }
}

void score_shard(const Arguments& arguments) {
  const auto campaign = read_file<float>(argument(arguments, "campaign"));
  const auto vectors = read_file<float>(argument(arguments, "vectors"));
  if (campaign.empty() || vectors.size() % campaign.size() != 0) {
    throw std::runtime_error("the users' vectors and the campaign's are not of one length");
  }
  const std::size_t users = vectors.size() / campaign.size();
  const std::uint64_t first_row = number(arguments, "first_row");

  // The selection does not copy the bitmap: it is declared first, hence outlives it, and nobody writes to it. It is the
  // whole pool's, like row numbers and num_rows.
  std::vector<std::uint8_t> skip;
  if (arguments.contains("skip")) {
    skip = read_file<std::uint8_t>(argument(arguments, "skip"));
  }

  // k, num_rows and distribution must be the same on every machine, or merge and load refuse. NaN would by default
  // fail the push that holds it; a service would rather go on without the user, and report how many there were.
  lookalike::TopK top(number(arguments, "k"), {.num_rows = number(arguments, "num_rows"),
                                               .skip = skip,
                                               .nan = lookalike::NanPolicy::kSkip,
                                               .distribution = true});

  // Threads of our own take block after block. All push into the one selection, in any order: it locks for itself, and
  // one threshold for all turns away more than one for each would. A push starts threads only if it is told to.
  std::atomic<std::size_t> next{0};
  const auto produce = [&] {
    try {
      std::vector<float> scores(kBlock);  // once a thread; push copies what it keeps, so the buffer is ours again
      for (std::size_t begin = next.fetch_add(kBlock); begin < users; begin = next.fetch_add(kBlock)) {
        const std::span block(scores.data(), std::min(kBlock, users - begin));
        score(campaign, vectors, begin, block);
        // The row is the user's number in the pool, not in the shard: equal scores are ordered by it, and only by it
        // do the coordinator's rows mean anything.
        top.push(block, first_row + begin);
      }
    } catch (...) {
      next = users;  // a push that throws leaves the selection as it was, but the shard is not whole any more: give up
      throw;
    }
  };
  const unsigned threads = std::max(1U, std::thread::hardware_concurrency());
  std::vector<std::future<void>> producers;
  for (unsigned i = 0; i < threads; ++i) {
    producers.push_back(std::async(std::launch::async, produce));
  }
  for (std::future<void>& producer : producers) {
    producer.get();  // throws what was thrown there; leaving the scope waits for the others
  }
  write_file(argument(arguments, "partial"), top.save());
}

// --- The coordinator: merges the shards' partials and reports. ------------------------------------------------------

lookalike::TopK load(const std::string& path, const lookalike::TopKOptions& options) {
  const auto bytes = read_file<std::byte>(path);
  try {
    return lookalike::TopK::load(bytes, options);
  } catch (const std::exception& error) {  // DataCorrupted or InvalidInput: the library does not know the file's name
    throw std::runtime_error(path + ": " + error.what());
  }
}

// One line for each user selected, one for the cut-off, and one for each tenth of the pool: how low must the score go
// to reach so many?
void report(lookalike::TopK& top) {
  std::cout << std::setprecision(std::numeric_limits<float>::max_digits10);
  const lookalike::Selection best = top.finish();
  for (std::size_t i = 0; i < best.rows.size(); ++i) {
    std::cout << "selected " << i + 1 << " row " << best.rows[i] << " score " << best.scores[i] << '\n';
  }
  if (const auto cutoff = top.cutoff()) {
    std::cout << "cutoff " << cutoff->score << " selected " << cutoff->selected << " tied " << cutoff->tied << '\n';
  }
  const lookalike::Distribution all = top.distribution();
  for (std::uint64_t tenth = 1; tenth <= 10 && all.population > 0; ++tenth) {
    const std::uint64_t rank = std::max<std::uint64_t>(1, all.population * tenth / 10);
    std::cout << "reach " << rank << " score " << all.score_at(rank) << '\n';
  }
  std::cout << "pushed " << top.rows_seen() << " skipped " << top.rows_skipped() << " nan " << top.nan_count() << '\n';
}

void merge_shards(const Arguments& arguments, const std::vector<std::string>& paths) {
  // No bitmap: nothing is pushed here, and what was skipped is in the partials' counts.
  const lookalike::TopKOptions options{
      .num_rows = number(arguments, "num_rows"), .nan = lookalike::NanPolicy::kSkip, .distribution = true};
  std::optional<lookalike::TopK> merged;
  for (const std::string& path : paths) {  // one at a time: memory for two, however many there are; any order will do
    lookalike::TopK shard = load(path, options);
    if (merged) {
      merged->merge(shard);
    } else {
      merged.emplace(std::move(shard));
    }
  }
  if (!merged || merged->rows_seen() != options.num_rows) {
    // The converse, a shard given twice, is noticed only by a surplus of rows: keep track of your shards.
    throw std::runtime_error("a shard is missing: the partials hold " +
                             std::to_string(merged ? merged->rows_seen() : 0) + " of " +
                             std::to_string(options.num_rows) + " rows");
  }
  report(*merged);
}

void serve(std::span<char*> words) {
  Arguments arguments;
  std::vector<std::string> files;
  for (const std::string word : words.subspan(std::min<std::size_t>(2, words.size()))) {
    if (const std::size_t equals = word.find('='); equals != std::string::npos) {
      arguments[word.substr(0, equals)] = word.substr(equals + 1);
    } else {
      files.push_back(word);
    }
  }
  const std::string command = words.size() > 1 ? words[1] : "";
  if (command == "score") {
    score_shard(arguments);
  } else if (command == "merge") {
    merge_shards(arguments, files);
  } else {
    throw UsageError(
        "usage: score campaign=FILE vectors=FILE first_row=N num_rows=N k=N [skip=FILE] partial=FILE\n"
        "       merge num_rows=N FILE...");
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    serve({argv, static_cast<std::size_t>(argc)});
  } catch (const UsageError& error) {
    std::cerr << "shard_server (lookalike " << LOOKALIKE_VERSION << "): " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {  // the library's errors, std::bad_alloc and ours
    std::cerr << "shard_server: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
