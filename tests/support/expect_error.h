#pragma once

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "weightsmith/core/error.h"

namespace weightsmith::testing {

/// Runs `action`, which must throw an Error of `kind` whose message holds every one of `parts`.
template <class Action>
void expect_error(ErrorKind kind, const std::vector<std::string>& parts, const Action& action) {
  try {
    action();
  } catch (const Error& e) {
    CAPTURE(e.what());
    CHECK(e.kind() == kind);
    for (const std::string& part : parts) CHECK_THAT(e.what(), Catch::Contains(part));
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    return;
  }
  FAIL("no weightsmith::Error was thrown");
}

}  // namespace weightsmith::testing
