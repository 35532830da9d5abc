// All a test needs: checks that report and go on, and a main that runs the tests of its file and says how many failed.
#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace check {

inline int failures = 0;

struct Test {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(std::string name, std::function<void()> body) { tests().push_back({std::move(name), std::move(body)}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  ++failures;
  std::cerr << file << ':' << line << ": " << what << '\n';
}

template <class A, class B>
void equal(const A& actual, const B& expected, const char* text, const std::string& context, const char* file,
           int line) {
  if (!(actual == expected)) {
    std::ostringstream what;
    what << text << ": got " << actual << ", expected " << expected << ' ' << context;
    fail(file, line, what.str());
  }
}

template <class Error, class Body>
void throws(Body body, const std::string& part, const char* file, int line) {
  try {
    body();
  } catch (const Error& error) {
    if (std::string(error.what()).find(part) == std::string::npos) {
      fail(file, line, std::string("the message lacks '") + part + "': " + error.what());
    }
    return;
  } catch (const std::exception& error) {
    fail(file, line, std::string("another exception: ") + error.what());
    return;
  }
  fail(file, line, "nothing was thrown");
}

inline int run() {
  for (const Test& test : tests()) {
    const int before = failures;
    try {
      test.body();
    } catch (const std::exception& error) {
      fail(test.name.c_str(), 0, std::string("threw ") + error.what());
    }
    std::cout << (failures == before ? "ok   " : "FAIL ") << test.name << std::endl;
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                   \
  static void name();                                                \
  static const check::Registration registration_##name(#name, name); \
  static void name()
#define CHECK(condition) \
  if (!(condition)) check::fail(__FILE__, __LINE__, #condition)
#define CHECK_EQUAL(actual, expected) check::equal(actual, expected, #actual, "", __FILE__, __LINE__)
#define CHECK_EQUAL_IN(actual, expected, context) check::equal(actual, expected, #actual, context, __FILE__, __LINE__)
#define CHECK_THROWS(Error, part, ...) check::throws<Error>([&] { __VA_ARGS__; }, part, __FILE__, __LINE__)
