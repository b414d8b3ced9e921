#include "weightsmith/core/run_record.h"

#include <spdlog/fmt/chrono.h>
#include <spdlog/fmt/fmt.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "weightsmith/core/blas_kernels.h"
#include "weightsmith/core/sha256.h"
#include "weightsmith/core/version.h"

namespace weightsmith {

void RunInputs::add(const RunInputs& other) {
  files.insert(files.end(), other.files.begin(), other.files.end());
  listings.insert(listings.end(), other.listings.begin(), other.listings.end());
}

RunRecord::RunRecord(std::string tool, std::string device, int threads, std::int64_t seed)
    : tool_(std::move(tool)),
      device_(std::move(device)),
      threads_(threads),
      seed_(seed),
      started_(std::chrono::system_clock::now()),
      clock_(std::chrono::steady_clock::now()) {}

void RunRecord::add_input(const std::filesystem::path& path) {
  const std::string name = path.string();
  if (!inputs_.contains(name)) inputs_[name] = sha256_of_file(path);
}

void RunRecord::add_input(const std::filesystem::path& path, std::string sha256) {
  inputs_[path.string()] = std::move(sha256);
}

void RunRecord::add_inputs(const RunInputs& inputs) {
  for (const auto& path : inputs.files) add_input(path);
  for (const FileListing& listing : inputs.listings)
    if (std::find(listings_.begin(), listings_.end(), listing) == listings_.end())
      listings_.push_back(listing);
}

void RunRecord::add_output(const std::filesystem::path& path) { outputs_.insert(path.string()); }

void RunRecord::add_phase(const std::string& name, double seconds) {
  for (auto& [known, total] : phases_) {
    if (known == name) {
      total += seconds;
      return;
    }
  }
  phases_.emplace_back(name, seconds);
}

void RunRecord::set(const std::string& key, nlohmann::json value) {
  extra_.emplace_back(key, value.dump());
}

nlohmann::json RunRecord::to_json() const {
  char host[256] = "";
  ::gethostname(host, sizeof(host) - 1);
  nlohmann::json phases = nlohmann::json::object();
  for (const auto& [name, seconds] : phases_) phases[name] = seconds;
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - clock_;
  nlohmann::json json = {
      {"tool", tool_},
      {"version", version()},
      {"git_revision", git_revision()},
      {"libtorch_version", libtorch_version()},
      {"blas_kernels", blas_kernels()},
      {"device", device_},
      {"threads", threads_},
      {"seed", seed_},
      {"host", host},
      {"started", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(started_))},
      {"wall_s", wall.count()},
      {"phases_s", phases},
      {"peak_memory_bytes", peak_memory_bytes()},
      {"inputs_sha256", inputs_},
      {"outputs", outputs_},
  };
  for (const FileListing& l : listings_)
    json["inputs_listed"].push_back({{"folder", l.folder.string()},
                                     {"files", l.files},
                                     {"bytes", l.bytes},
                                     {"names_and_sizes_sha256", l.sha256}});
  for (const auto& [key, text] : extra_) json[key] = nlohmann::json::parse(text);
  return json;
}

std::int64_t peak_memory_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;  // kilobytes on Linux
}

}  // namespace weightsmith
