#pragma once

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "weightsmith/core/error.h"

namespace weightsmith::testing {

/// The message of the Error that `action` throws; fails the test unless it throws one of `kind`, on
/// one line.
template <class Action>
std::string error_of(ErrorKind kind, Action&& action) {
  try {
    action();
  } catch (const Error& e) {
    INFO(e.what());
    CHECK(e.kind() == kind);
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    return e.what();
  }
  FAIL("no weightsmith::Error was thrown");
  return {};
}

/// Runs `action`, which must throw an Error of `kind` whose message holds every one of `parts`.
template <class Action>
void expect_error(ErrorKind kind, const std::vector<std::string>& parts, Action&& action) {
  const std::string message = error_of(kind, action);
  for (const std::string& part : parts) CHECK_THAT(message, Catch::Contains(part));
}

}  // namespace weightsmith::testing
