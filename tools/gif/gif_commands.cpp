#include "gif/gif_commands.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <memory>

#include "gif/gif_run.h"
#include "weightsmith/config/config_file.h"

namespace weightsmith {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

json run_field(const std::string& model, Run& run) {
  if (run.settings().out.empty())
    throw Error(ErrorKind::kConfig, "--out", "no file for the field", "--out field.safetensors");
  json raw = run.settings().raw_config;
  // A model of the configuration by its name, with its preprocessing; else an archive.
  json ref = json{{"script", fs::absolute(model).string()}};
  std::string place;
  if (raw.contains("models") && raw["models"].is_array())
    for (std::size_t i = 0; i < raw["models"].size(); ++i)
      if (const json& candidate = raw["models"][i];
          candidate.is_object() && candidate.value("name", "") == model) {
        ref = candidate;
        place = fmt::format("models[{}]", i);
      }
  raw["models"] = json::array({ref});
  // What --set said of the model is said of the only one now.
  OverriddenKeys overridden = run.settings().overridden;
  std::erase_if(overridden.keys, [&](const std::string& key) {
    return key.starts_with("models[") && (place.empty() || !key.starts_with(place));
  });
  for (std::string& key : overridden.keys)
    if (key.starts_with("models[")) key = "models[0]" + key.substr(place.size());
  raw.erase("task");
  raw.erase("out");
  validate_schema(raw, tool_schema("modelgif-dist"));
  GifConfig config;
  from_config(ConfigNode{raw, "", run.settings().config_folder, &overridden}, config);
  config.field.store = FieldStorage::kFloat32;
  config.validate();
  GifRun job(config, run);
  job.load_reference();
  job.try_out();
  return job.write_field(run.settings().out);
}

json run_distance(const std::string& a, const std::string& b, const std::string& distance) {
  DistanceKind kind = DistanceKind::kCosine;
  const json text = distance;
  detail::read_value(ConfigNode{text, "--distance", fs::path()}, kind);
  const FieldDistances found =
      field_distances({FieldFile(a).source(), FieldFile(b).source()}, kind, 0);
  return {{"distance", found.mean[1].item<double>()},
          {"kind", distance},
          {"per_sample", values_of(found.per_sample[1])},
          {"zero_norms", found.zero_norms}};
}

}  // namespace

Command field_command() {
  const auto define = [](CLI::App& app) -> std::function<json(Run&)> {
    auto model = std::make_shared<std::string>();
    app.add_option("MODEL", *model,
                   "TorchScript archive, or the name of a model of the configuration")
        ->required();
    return [model](Run& run) { return run_field(*model, run); };
  };
  return {"field", "Compute one model's field and write it to the file --out", define, true};
}

Command distance_command() {
  const auto define = [](CLI::App& app) -> std::function<json(Run&)> {
    auto files = std::make_shared<std::pair<std::string, std::string>>();
    auto kind = std::make_shared<std::string>("cosine");
    app.add_option("A", files->first, "safetensors file with a field (samples, steps, D)")
        ->required();
    app.add_option("B", files->second, "Another, of the same shape")->required();
    std::vector<std::string> known;
    for (const auto& [value, name] : enum_names(DistanceKind{})) known.emplace_back(name);
    app.add_option("--distance", *kind, "Distance between fields")
        ->capture_default_str()
        ->check(CLI::IsMember(known));
    return [files, kind](Run&) { return run_distance(files->first, files->second, *kind); };
  };
  return {"distance", "Distance between two stored fields", define};
}

}  // namespace weightsmith
