#!/usr/bin/env bash
# Builds the C++ tests with sanitizers and runs them, in the repository's root: what `make check-sanitize` does.
#
#   csrc/tests/sanitize.sh address,undefined      into build/sanitize-address
#   csrc/tests/sanitize.sh thread                 into build/sanitize-thread
set -euo pipefail
sanitizers=$1
export CXX=${CXX:-c++}
build=build/sanitize-${sanitizers%%,*}
mkdir -p "$build"

fail() {
  echo "check-sanitize: $1" >&2
  exit 1
}

# A program of nothing tells in a second what would otherwise be a page of linker or run-time errors.
probe=$build/probe
if ! echo 'int main() {}' | "$CXX" -fsanitize="$sanitizers" -x c++ - -o "$probe"; then
  version=$("$CXX" -dumpversion)
  package=libgcc-${version%%.*}-dev
  if "$CXX" --version | grep -q clang; then package=libclang-rt-${version%%.*}-dev; fi
  fail "$CXX cannot link -fsanitize=$sanitizers: install its libraries (Debian: $package)"
fi

# Sanitizers want fixed addresses, which kernels that randomise by more than 28 bits (vm.mmap_rnd_bits) sometimes give
# to something else: "unexpected memory mapping". Where it is allowed, run without randomisation; where it is not, by
# twenty starts we know whether this is such a kernel.
run=(setarch "$(uname -m)" --addr-no-randomize)
if ! "${run[@]}" true 2> /dev/null; then run=(); fi
for _ in {1..20}; do
  "${run[@]}" "$probe" || fail "programs with -fsanitize=$sanitizers do not start reliably on this machine:
  let them run without address randomisation (docker: --security-opt seccomp=unconfined),
  or randomise less: sysctl vm.mmap_rnd_bits=28"
done

# Warnings are no errors here: GCC's manual advises against both together, as instrumented code makes it warn falsely.
# Lines are all of the debug information that reports show, and what is checked at every step gains nothing from -O2,
# with which instrumented kernels take minutes to compile.
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLOOKALIKE_BUILD_TESTS=ON \
  -DCMAKE_CXX_FLAGS_RELWITHDEBINFO='-O1 -g1 -DNDEBUG' \
  -DLOOKALIKE_SANITIZE="$sanitizers" > "$build/cmake.log" || { cat "$build/cmake.log"; exit 1; }
cmake --build "$build"
export UBSAN_OPTIONS=print_stacktrace=1
"${run[@]}" ctest --test-dir "$build" --parallel "$(nproc)" --output-on-failure
