#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/run.h"
#include "weightsmith/config/fields.h"

namespace weightsmith {

/// A flag that is short for --set ASSIGNMENT ("--no-verify" for "verify=false").
struct SettingFlag {
  std::string name;
  std::string assignment;
  std::string description;
};

/// What --help says of a tool beside its options.
struct ToolAbout {
  std::string name;                     ///< "mudsc-merge"; also the name of its schema
  std::string description;              ///< what it does, the paper it implements
  std::string example;                  ///< one worked command
  std::vector<SettingFlag> flags = {};  ///< those only this tool has
  /// RunFolderFlags::extends; default: never.
  std::function<bool(const nlohmann::json& finished, const nlohmann::json& config)> extends = {};
};

/// A subcommand with options of its own ("mudsc-merge match FILE --models 2"). `define` adds the
/// options to the parser and returns what to do once they are parsed; that returns the summary for
/// standard output.
struct Command {
  std::string name;
  std::string description;
  std::function<std::function<nlohmann::json(Run&)>(CLI::App&)> define;
  /// --config and --set are handed on (Run::Settings::raw_config), and --out as it is.
  bool takes_config = false;
};

/// The part of run_tool that knows no configuration struct. `resolve` turns the raw configuration
/// into the resolved one (throwing for what is wrong); `body` runs the tool on it and returns the
/// summary.
struct ToolBody {
  std::function<nlohmann::json(const ConfigNode&)> resolve;
  std::function<nlohmann::json(Run&)> body;
};
int run_tool_body(int argc, char** argv, const ToolAbout& about, const ToolBody& body,
                  const std::vector<Command>& commands);

/// Gives a tool the flags, logging, run record and exit codes that all share (docs/interface.md):
/// parses the command line, reads and validates the configuration, calls `body`, prints its summary
/// and writes it to DIR/results.json. With --dry-run `body` returns the plan and writes nothing.
/// Returns the exit code; never throws.
template <class Config>
int run_tool(int argc, char** argv, const ToolAbout& about,
             const std::function<nlohmann::json(const Config&, Run&)>& body,
             const std::vector<Command>& commands = {}) {
  Config config;
  return run_tool_body(argc, argv, about,
                       {[&config](const ConfigNode& node) {
                          from_config(node, config);
                          config.validate();
                          return to_config(config);
                        },
                        [&config, &body](Run& run) { return body(config, run); }},
                       commands);
}

}  // namespace weightsmith
