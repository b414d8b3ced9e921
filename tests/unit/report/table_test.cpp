#include "weightsmith/report/table.h"

#include <catch2/catch.hpp>

namespace weightsmith {
namespace {

TEST_CASE("a table is Markdown that reads as plain text", "[report]") {
  Table table({"model", "joint"});
  table.add_row({"zip", "61.2"});
  table.add_row({"average", "9.0"});
  CHECK(table.markdown() ==
        "| model   | joint |\n"
        "|---------|------:|\n"
        "| zip     |  61.2 |\n"
        "| average |   9.0 |\n");
}

TEST_CASE("a cell of a Markdown table stays in its place", "[report]") {
  Table table({"model|set", "joint"});
  table.add_row({"a|b\nc", "1"});
  CHECK(table.markdown() ==
        "| model\\|set | joint |\n"
        "|------------|------:|\n"
        "| a\\|b c     |     1 |\n");
}

TEST_CASE("CSV quotes what would break a row", "[report]") {
  Table table({"a,b", "c"});
  table.add_row({"say \"x\"", "1"});
  CHECK(table.csv() == "\"a,b\",c\n\"say \"\"x\"\"\",1\n");
}

}  // namespace
}  // namespace weightsmith
