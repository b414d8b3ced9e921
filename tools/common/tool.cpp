#include "common/tool.h"

#include <c10/util/Exception.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <torch/cuda.h>

#include <fcntl.h>
#include <unistd.h>
#include <cerrno>
#include <csignal>
#include <iostream>
#include <new>
#include <optional>
#include <set>

#include "common/run_folder.h"
#include "common/terminal_progress.h"
#include "weightsmith/config/config_file.h"
#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/blas_kernels.h"
#include "weightsmith/core/sha256.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/core/threads.h"
#include "weightsmith/core/version.h"
#include "weightsmith/model/jit_runtime.h"

namespace weightsmith {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

/// What the command line says beside the configuration.
struct Flags {
  std::string config;
  std::vector<std::string> overrides;
  std::optional<std::string> out;
  std::optional<std::string> device;
  std::optional<std::int64_t> threads;
  std::optional<std::int64_t> seed;
  bool resume = false;
  bool overwrite = false;
  bool dry_run = false;
  bool trust = false;
  bool print_config = false;
  bool print_schema = false;
  bool quiet = false;
  bool verbose = false;
  std::string log_file;
};

void add_flags(CLI::App& app, const ToolAbout& about, Flags& flags) {
  app.add_option("--config", flags.config, "Configuration file (JSON); - reads standard input")
      ->type_name("FILE.json");
  app.add_option("--set", flags.overrides,
                 "Set one key of the configuration, e.g. --set balance=0.7; repeatable")
      ->type_name("KEY.PATH=JSON")
      ->allow_extra_args(false);
  app.add_option("--out", flags.out, "Folder for the results (key: out)")->type_name("DIR");
  app.add_option("--device", flags.device, "auto, cpu, cuda or cuda:N (key: device)")
      ->type_name("DEVICE");
  app.add_option("--threads", flags.threads,
                 "CPU threads; 0 takes what the process may use (key: threads)")
      ->type_name("N");
  app.add_option("--seed", flags.seed, "Seed of every random choice (key: seed)")->type_name("N");
  app.add_flag("--resume", flags.resume,
               "Finish or reuse what DIR holds of the same configuration");
  app.add_flag("--overwrite", flags.overwrite, "Replace a finished run in DIR");
  app.add_flag("--dry-run", flags.dry_run,
               "Check everything that is cheap to check, print the plan, write nothing");
  app.add_flag("--trust", flags.trust,
               "Load TorchScript archives whose code touches files or processes");
  for (const SettingFlag& flag : about.flags)
    app.add_flag_callback(
        flag.name, [&flags, flag] { flags.overrides.push_back(flag.assignment); },
        flag.description);
  app.add_flag("--print-config", flags.print_config, "Print the resolved configuration and exit");
  app.add_flag("--print-schema", flags.print_schema,
               "Print the JSON Schema of the configuration and exit");
  app.add_flag("--quiet", flags.quiet, "Print nothing but errors to standard error");
  app.add_flag("-v,--verbose", flags.verbose, "Print more, and stack traces of errors");
  app.add_option("--log-file", flags.log_file, "Also write the log to this file")
      ->type_name("FILE");
}

/// A standard stream that the caller closed would be the next file to be opened, and what is meant
/// for it would land there. Reading from standard input and writing to standard output fail
/// instead.
void hold_standard_streams() {
  // Descriptors are given out from the lowest.
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(stream, F_GETFD) < 0 && errno == EBADF)
      ::open("/dev/null", stream == STDOUT_FILENO ? O_RDONLY : O_WRONLY);
}

extern "C" void weightsmith_on_signal(int signal) {
  // A second Ctrl-C means now.
  if (signal == SIGINT && stop_requested() == SIGINT) {
    remove_temporary_file_now();
    ::_exit(128 + SIGINT);
  }
  request_stop(signal);
}

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = weightsmith_on_signal;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) ::sigaction(signal, &action, nullptr);
  // A closed pipe or a file size limit shows as a failed write, which has a message, instead of a
  // death without one.
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
}

void set_up_logging(const Flags& flags) {
  auto terminal = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  terminal->set_level(flags.quiet     ? spdlog::level::err
                      : flags.verbose ? spdlog::level::debug
                                      : spdlog::level::info);
  terminal->set_pattern("%v");
  auto logger = std::make_shared<spdlog::logger>("weightsmith", terminal);
  logger->set_level(spdlog::level::debug);
  // Where a log cannot be written the results cannot either, and that has a message of its own.
  logger->set_error_handler([](const std::string&) {});
  spdlog::set_default_logger(logger);
}

void log_to_file(const fs::path& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path.string());
    sink->set_pattern("%Y-%m-%d %H:%M:%S.%e %l %v");
    sink->set_level(spdlog::level::debug);
    spdlog::default_logger()->sinks().push_back(sink);
    spdlog::flush_on(spdlog::level::info);
  } catch (const spdlog::spdlog_ex&) {
    throw Error(ErrorKind::kOutput, path.string(), "cannot write the log",
                "choose another --out or --log-file");
  }
}

at::Device parse_device(const std::string& text) {
  const bool cuda = torch::cuda::is_available();
  if (text == "auto") return cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  if (text != "cpu" && text != "cuda" && !text.starts_with("cuda:"))
    throw Error(ErrorKind::kConfig, "device", fmt::format("unknown device \"{}\"", text),
                "auto, cpu, cuda or cuda:N");
  if (text == "cpu") return at::kCPU;
  try {
    at::Device device(text);
    if (!cuda || device.index() >= static_cast<int>(torch::cuda::device_count()))
      throw Error(ErrorKind::kConfig, "device",
                  fmt::format("{} is not there: this machine shows {} CUDA devices", text,
                              torch::cuda::device_count()),
                  "--device auto");
    return device.has_index() ? device : at::Device(at::kCUDA, 0);
  } catch (const c10::Error&) {
    throw Error(ErrorKind::kConfig, "device", fmt::format("unknown device \"{}\"", text),
                "auto, cpu, cuda or cuda:N");
  }
}

/// Where the configuration's relative paths start.
fs::path config_folder(const Flags& flags) {
  return flags.config.empty() || flags.config == "-" ? fs::current_path()
                                                     : fs::absolute(flags.config).parent_path();
}

/// The configuration with everything the command line changed, not yet resolved.
json raw_config(const Flags& flags, const std::string& text, OverriddenKeys& overridden) {
  json config = flags.config.empty() ? json::object() : parse_config(text, flags.config);
  if (!config.is_object())
    throw Error(ErrorKind::kConfig, flags.config, "the configuration must be a JSON object",
                "see --print-schema");
  for (const std::string& assignment : flags.overrides)
    overridden.keys.push_back(apply_override(config, assignment));
  if (flags.out) {
    config["out"] = *flags.out;
    overridden.keys.emplace_back("out");
  }
  if (flags.device) config["device"] = *flags.device;
  if (flags.threads) config["threads"] = *flags.threads;
  if (flags.seed) config["seed"] = *flags.seed;
  return config;
}

/// What `file` is called below `out`, also if a link leads there; anything else if it is not below.
std::string name_below(const fs::path& out, const fs::path& file) {
  std::error_code missing;
  return fs::canonical(file, missing).lexically_relative(fs::canonical(out, missing)).string();
}

/// run.json. `former`: files of runs before this one, which a later --overwrite is to find.
void write_record(Run& run, const std::set<std::string>& former) {
  for (const auto* files : {&run.outputs(), &former})
    for (const std::string& name : *files) run.record().add_output(name);
  // Of files that no configuration names (--config, an environment's folder) any name will do.
  write_text_atomically(
      run.settings().out / "run.json",
      run.record().to_json().dump(2, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace) +
          "\n");
}

/// What a run that ends before its time wrote is known to the next; the failure itself matters more
/// than whether this can be written.
void write_record_of_failure(Run& run, const std::set<std::string>& former) {
  try {
    write_record(run, former);
  } catch (const Error& e) {
    spdlog::debug("{}", e.what());
  }
}

json run_configured(const ToolAbout& about, const ToolBody& body, const Flags& flags,
                    const json& schema, TerminalProgress& progress) {
  if (flags.config.empty() && flags.overrides.empty())
    throw Error(ErrorKind::kConfig, "--config", "no configuration given",
                "see --help for an example");
  OverriddenKeys overridden{{}, fs::current_path()};
  const std::string text = flags.config.empty() ? "" : read_config_text(flags.config);
  const json raw = raw_config(flags, text, overridden);
  refuse_invalid_utf8(raw);
  validate_schema(raw, schema);
  const fs::path base = config_folder(flags);
  const json config = body.resolve(ConfigNode{raw, "", base, &overridden});
  refuse_invalid_utf8(config);
  if (flags.print_config) return config;

  Run::Settings settings;
  settings.out = config.value("out", "");
  settings.device = parse_device(config.value("device", "auto"));
  const std::int64_t threads = config.value("threads", std::int64_t{0});
  settings.threads = set_thread_count(static_cast<int>(threads));
  settings.seed = static_cast<std::uint64_t>(config.value("seed", std::int64_t{0}));
  settings.resume = flags.resume;
  settings.dry_run = flags.dry_run;
  settings.overwrite = flags.overwrite;
  settings.trust = flags.trust;
  if (settings.out.empty())
    throw Error(ErrorKind::kConfig, "out", "no folder for the results", "--out DIR");

  const fs::path& out = settings.out;
  if (!flags.dry_run) {
    if (auto summary = finished_run(out, {flags.resume, flags.overwrite, about.extends}, config,
                                    schema_defaults(schema)))
      return *summary;
  }
  Run run(about.name, settings, progress);
  std::set<std::string> former;
  run.on_start([&] {
    former = former_outputs(out, about.name);
    claim_folder(out, config);
    log_to_file(out / "log.txt");
  });
  progress.on_phase_end(
      [&run](const std::string& phase, double seconds) { run.record().add_phase(phase, seconds); });
  // Of what was read, not of the file: from a pipe there is nothing left to read.
  if (!flags.config.empty()) run.record().add_input(flags.config, sha256_of_text(text));
  json summary;
  try {
    summary = body.body(run);
  } catch (...) {
    if (run.started()) write_record_of_failure(run, former);
    throw;
  }
  if (flags.dry_run) return summary;
  for (const std::string& name : run.outputs()) former.erase(name);
  if (flags.overwrite) {
    // A result of the former run may be what this one is made of.
    for (const auto& [input, hash] : run.record().inputs()) former.erase(name_below(out, input));
    remove_outputs(out, former);
    former.clear();
  }
  write_record(run, former);
  write_text_atomically(out / "results.json",
                        summary.dump(2) + "\n");  // last: it marks the run finished
  return summary;
}

json run_command(const ToolAbout& about, const Command& command,
                 const std::function<json(Run&)>& action, const Flags& flags,
                 TerminalProgress& progress, std::optional<Error>& failure) {
  Run::Settings settings;
  if (command.takes_config) {
    settings.overridden.folder = fs::current_path();
    settings.raw_config = raw_config(
        flags, flags.config.empty() ? "" : read_config_text(flags.config), settings.overridden);
    settings.config_folder = config_folder(flags);
    settings.out = flags.out.value_or("");
  }
  settings.device = parse_device(flags.device.value_or("auto"));
  settings.threads = set_thread_count(static_cast<int>(flags.threads.value_or(0)));
  settings.seed = static_cast<std::uint64_t>(flags.seed.value_or(0));
  settings.trust = flags.trust;
  Run run(about.name, settings, progress);
  json summary = action(run);
  failure = run.failure();
  return summary;
}

/// Runs `action`, turning every exception into one line on standard error and an exit code.
int guarded(const ToolAbout& about, const Flags& flags, const std::function<void()>& action) {
  const auto complain = [&about](const std::string& message) {
    spdlog::error("{}: error: {}", about.name, message);
  };
  const std::string out_of_memory =
      "out of memory (use a smaller batch_size, or a machine or device with more)";
  try {
    action();
    return 0;
  } catch (const Error& e) {
    complain(e.what());
    return e.exit_code();
  } catch (const Interrupted& e) {
    spdlog::error("{}: {}", about.name, e.what());
    return 128 + e.signal();
  } catch (const c10::Error& e) {
    const std::string what = e.what_without_backtrace();
    if (is_out_of_memory(what)) {
      complain(out_of_memory);
      return static_cast<int>(ErrorKind::kNumeric);
    }
    complain(fmt::format("LibTorch: {} (a bug in weightsmith, please report it with -v)",
                         what.substr(0, what.find('\n'))));
    if (flags.verbose) spdlog::error("{}", e.what());
  } catch (const std::bad_alloc&) {
    complain(out_of_memory);
    return static_cast<int>(ErrorKind::kNumeric);
  } catch (const std::exception& e) {
    complain(fmt::format("{} (a bug in weightsmith, please report it)", e.what()));
  } catch (...) {
    complain("unknown exception (a bug in weightsmith, please report it)");
  }
  return static_cast<int>(ErrorKind::kInternal);
}

}  // namespace

int run_tool_body(int argc, char** argv, const ToolAbout& about, const ToolBody& body,
                  const std::vector<Command>& commands) {
  restart_with_better_blas_kernels(argv);
  hold_standard_streams();
  CLI::App app(about.description, about.name);
  Flags flags;
  add_flags(app, about, flags);
  app.set_version_flag(
      "--version", fmt::format("{} (weightsmith) {}\ngit {}, LibTorch {}", about.name, version(),
                               git_revision(), libtorch_version()));
  app.footer(
      fmt::format("Example:\n  {}\n\nExit codes: 0 done, 2 command line or configuration, 3 "
                  "unreadable or mismatched "
                  "model or data,\n4 cannot write, 5 non-finite values or out of memory, 70 a bug, "
                  "128+n ended by "
                  "signal n.",
                  about.example));
  app.require_subcommand(0, 1);
  std::vector<std::pair<CLI::App*, std::function<json(Run&)>>> actions;
  for (const Command& command : commands) {
    CLI::App* sub = app.add_subcommand(command.name, command.description);
    sub->fallthrough();
    actions.emplace_back(sub, command.define(*sub));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    const int code = app.exit(e);  // --help, --version
    return std::cout.flush() ? code : static_cast<int>(ErrorKind::kOutput);
  } catch (const CLI::ParseError& e) {
    std::cerr << about.name << ": error: command line: " << e.what() << " (see " << about.name
              << " --help)\n";
    return static_cast<int>(ErrorKind::kConfig);
  }

  set_up_logging(flags);
  install_signal_handlers();
  return guarded(about, flags, [&] {
    if (!flags.log_file.empty()) log_to_file(flags.log_file);
    TerminalProgress progress(flags.quiet);
    const auto command = std::find_if(actions.begin(), actions.end(),
                                      [](const auto& entry) { return entry.first->parsed(); });
    json summary;
    std::optional<Error> failure;
    if (command != actions.end()) {
      summary = run_command(about, commands[static_cast<std::size_t>(command - actions.begin())],
                            command->second, flags, progress, failure);
    } else {
      const json schema = tool_schema(about.name);
      summary = flags.print_schema ? schema : run_configured(about, body, flags, schema, progress);
    }
    std::cout << summary.dump(2) << std::endl;
    if (!std::cout)
      throw Error(ErrorKind::kOutput, "standard output", "cannot write the summary",
                  "what the run computed is in its --out");
    if (failure) throw *failure;
  });
}

}  // namespace weightsmith
