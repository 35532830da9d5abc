// Prints the best of a stream of scores: `best_users 3 < scores.txt`, where line i holds the score of row i.
#include <lookalike/cpu.h>
#include <lookalike/topk.h>
#include <lookalike/version.h>

#include <exception>
#include <iostream>
#include <string>
#include <vector>

namespace {

void select(std::uint64_t k) {
  constexpr std::size_t kChunk = 4096;
  lookalike::TopK top(k, {.nan = lookalike::NanPolicy::kSkip});
  std::vector<float> chunk;
  std::uint64_t first_row = 0;
  const auto push = [&] {
    top.push(chunk, first_row);
    first_row += chunk.size();
    chunk.clear();
  };
  for (std::string line; std::getline(std::cin, line);) {
    chunk.push_back(std::stof(line));  // "nan" is a number here
    if (chunk.size() == kChunk) {
      push();
    }
  }
  push();

  const lookalike::Selection best = top.finish();
  for (std::size_t i = 0; i < best.rows.size(); ++i) {
    std::cout << best.rows[i] << ' ' << best.scores[i] << '\n';
  }
  if (const auto cutoff = top.cutoff()) {
    std::cerr << cutoff->selected << " of the " << cutoff->tied << " rows at " << cutoff->score << " are in\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: best_users K < scores (lookalike " << LOOKALIKE_VERSION << ", "
              << lookalike::name(lookalike::simd_level()) << ")\n";
    return 2;
  }
  try {
    select(std::stoull(argv[1]));
  } catch (const std::exception& error) {
    std::cerr << "best_users: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
