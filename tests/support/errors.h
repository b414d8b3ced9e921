#pragma once

#include <catch2/catch.hpp>
#include <string>

#include "weightsmith/core/error.h"

namespace weightsmith::test {

/// The message of the weightsmith::Error that `body` throws; fails the test unless it throws one of
/// that kind.
template <class Body>
std::string error_of(ErrorKind kind, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    INFO(error.what());
    CHECK(error.exit_code() == static_cast<int>(kind));
    return error.what();
  }
  FAIL("no error was thrown");
  return {};
}

}  // namespace weightsmith::test
