// mudsc-merge's landscapes: scores on the way between networks and on the plane through them.
#include <catch2/catch.hpp>
#include <csignal>
#include <sstream>
#include <string>
#include <vector>

#include "merges.h"
#include "support/files.h"
#include "support/temporary_folder.h"
#include "tools.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

TEST_CASE("a landscape shows the way between the networks before and after matching") {
  const TemporaryFolder folder;
  json config = scored(merge_of(folder, "convnet", {{"width", 4}}, 2));
  config["method"] = "align";
  config["landscape"] = {{"line", 5}, {"plane", 4}, {"sets", {"joint", "low"}}};
  const json summary = run(folder, config, "out");
  const json& landscape = summary["variants"][0]["landscape"];
  const json& sets = landscape["lines"][0]["sets"];
  CHECK(sets.size() == 2);
  CHECK(sets["joint"]["barrier"] >= 0);
  CHECK(sets["joint"]["barrier_matched"] >= 0);
  CHECK(landscape["plane"]["corners"].size() == 3);
  const fs::path at = folder / "out/landscape";
  const auto line = lines_of(at / "line.csv");
  CHECK(line.size() == 1 + 2 * 2 * 5);
  CHECK(lines_of(at / "plane.csv").size() == 1 + 2 * 16);
  for (const char* name : {"line.svg", "plane-loss.svg", "plane-accuracy.svg"})
    CHECK_THAT(read_bytes(at / name), Catch::StartsWith("<svg "));
  // The ends of a line are the networks themselves: with statistics of their own they score the
  // same matched or not.
  std::map<std::string, std::vector<std::string>> ends;
  for (const std::string& row : line)
    if (row.starts_with("a,b,") && row.find(",1,joint,") != std::string::npos)
      ends["b"].push_back(row.substr(row.find(",joint,") + 7, 4));
  REQUIRE(ends["b"].size() == 2);
  CHECK(ends["b"][0] == ends["b"][1]);

  // Finished points are not scored again.
  json points = json::parse(read_bytes(at / "points.json"));
  CHECK(points["points"].size() == 2 * 5 + 16);
  points["points"]["line/1/matched/2"][0]["correct"] = 99;
  points["points"].erase("plane/0/0");
  write_bytes(at / "points.json", points.dump());
  fs::remove(folder / "out/results.json");
  run(folder, config, "out", {"--resume"});
  const auto again = lines_of(at / "line.csv");
  CHECK(std::count_if(again.begin(), again.end(), [](const std::string& row) {
          return row.find(",0.5,joint,0.99,") != std::string::npos;
        }) == 1);
  CHECK(lines_of(at / "plane.csv").size() == 1 + 2 * 16);
  // Under other settings all of them are.
  fs::remove(folder / "out/results.json");
  config["landscape"]["reset"] = false;
  run(folder, config, "out", {"--resume"});
  const auto other = lines_of(at / "line.csv");
  CHECK(std::none_of(other.begin(), other.end(), [](const std::string& row) {
    return row.find(",0.5,joint,0.99,") != std::string::npos;
  }));
}

TEST_CASE("a landscape that was killed goes on, and ends as one that was not") {
  const TemporaryFolder folder;
  json config = scored(merge_of(folder, "convnet", {{"width", 24}}, 2));  // some seconds of points
  config["method"] = "align";
  config["landscape"] = {{"line", 3}, {"plane", 16}, {"sets", {"joint", "low"}}};
  run(folder, config, "whole");
  const fs::path points = folder / "killed/landscape/points.json";
  const std::vector<std::string> arguments{"--config", write_config(folder / "merge.json", config),
                                           "--out",    print(folder / "killed"),
                                           "--quiet",  "--resume"};
  ProgramOptions options;
  options.signal = SignalPlan{SIGKILL, points, "", {}};
  CHECK(mudsc_merge(arguments, options).killed_by == SIGKILL);
  const std::size_t scored_points = json::parse(read_bytes(points))["points"].size();
  CHECK(scored_points > 0);
  CHECK(scored_points < 2 * 3 + 16 * 16);
  summary_of(mudsc_merge(arguments));
  for (const char* name : {"line.csv", "plane.csv", "plane-loss.svg"}) {
    INFO(name);
    CHECK(read_bytes(folder / "killed/landscape" / name) ==
          read_bytes(folder / "whole/landscape" / name));
  }
}

TEST_CASE("the ends of a landscape are the networks as they came, whatever the cache holds") {
  const TemporaryFolder folder;
  json config = scored(merge_of(folder, "convnet", {{"width", 4}}, 2));
  config["method"] = "align";
  config["activations"]["cache"] = print(folder / "cache");
  config["landscape"] = {{"line", 3}, {"sets", {"joint"}}, {"reset", false}};
  run(folder, config, "first");
  run(folder, config, "second");
  CHECK(read_bytes(folder / "first/landscape/line.csv") ==
        read_bytes(folder / "second/landscape/line.csv"));
}

TEST_CASE("networks that lie on a line have no plane, and keep everything else") {
  const TemporaryFolder folder;
  json config = scored(merge_of(folder, "convnet", {{"width", 4}}, 2));
  config["models"][1] = {{"name", "again"}, {"script", config["models"][0]}};
  config["method"] = "align";
  config["landscape"] = {{"line", 3}, {"plane", 3}, {"sets", {"joint"}}};
  const json landscape = run(folder, config, "out")["variants"][0]["landscape"];
  CHECK(landscape.contains("lines"));
  CHECK_FALSE(landscape.contains("plane"));
  CHECK(fs::exists(folder / "out/merged.pt"));
}

TEST_CASE("a landscape can be repaired at every point") {
  const TemporaryFolder folder;
  json config = scored(merge_of(folder, "convnet", {{"width", 4}, {"norm", "none"}}, 2));
  config["method"] = "align";
  config["normalization"] = {{"mode", "repair"}};
  config["landscape"] = {{"line", 3}, {"plane", 3}, {"sets", {"joint"}}, {"repair", true}};
  const json summary = run(folder, config, "out");
  const auto line = lines_of(folder / "out/landscape/line.csv");
  const auto loss_at = [&](const std::string& start) {
    for (const std::string& row : line)
      if (row.starts_with(start)) {
        std::vector<std::string> cells;
        std::istringstream parts(row);
        for (std::string cell; std::getline(parts, cell, ',');) cells.push_back(cell);
        return std::stod(cells.at(6));
      }
    FAIL("no row " << start);
    return 0.0;
  };
  // In the middle lies the merged network, at the ends the originals, which repair leaves alone.
  CHECK(loss_at("a,b,1,0.5,") ==
        Approx(summary["variants"][0]["scores"]["joint"]["loss"].get<double>()).epsilon(1e-4));
  for (const int end : {0, 1})
    for (const char* matched : {"0", "1"})
      CHECK(
          loss_at(std::string("a,b,") + matched + (end == 0 ? ",0," : ",1,")) ==
          Approx(summary["originals"][end]["scores"]["joint"]["loss"].get<double>()).epsilon(1e-3));
  CHECK(lines_of(folder / "out/landscape/plane.csv").size() == 1 + 9);

  // It makes a difference, and is asked for.
  config["landscape"]["repair"] = false;
  run(folder, config, "plain");
  const auto plain = lines_of(folder / "plain/landscape/line.csv");
  CHECK(plain != line);
  config["landscape"]["repair"] = true;
  config["normalization"]["mode"] = "reset";
  check_failure(mudsc_merge({"--config", write_config(folder / "wrong.json", config), "--out",
                             (folder / "wrong").string(), "--quiet"}),
                "mudsc-merge", 2, {"landscape.repair", "normalization.mode"});
}
