#include "weightsmith/model/model_ref.h"

#include "weightsmith/config/fields.h"

namespace weightsmith {

template <class Fields>
void fields(Fields& f, Preprocess& p) {
  f("resize", p.resize);
  f("mean", p.mean);
  f("std", p.std);
}

template <class Fields>
void fields(Fields& f, ModelRef& r) {
  f("name", r.name);
  f("script", r.script);
  f("builtin", r.builtin);
  f("options", r.options);
  f("weights", r.weights);
  f("preprocess", r.preprocess);
}

namespace {

std::string default_name(const ModelRef& ref) {
  const std::filesystem::path& path = ref.weights.empty() ? ref.script : ref.weights;
  if (path.empty()) return ref.builtin;
  const std::string stem = path.stem().string();
  const std::string folder = path.parent_path().filename().string();
  return (stem == "model" || stem == "merged") && !folder.empty() ? folder : stem;
}

}  // namespace

void from_config(const ConfigNode& node, Preprocess& preprocess) {
  read_fields(node, preprocess);
  if (preprocess.resize && *preprocess.resize < 1)
    node.fail(fmt::format("\"resize\" is {}, at least 1 wanted", *preprocess.resize));
  if (preprocess.mean.size() > 1 && preprocess.std.size() > 1 &&
      preprocess.mean.size() != preprocess.std.size())
    node.fail(fmt::format("\"mean\" has {} values, \"std\" {}", preprocess.mean.size(),
                          preprocess.std.size()));
  for (const double value : preprocess.std)
    if (!(value > 0)) node.fail(fmt::format("\"std\" holds {}, positive numbers wanted", value));
}

nlohmann::json to_config(const Preprocess& preprocess) {
  nlohmann::json json = write_fields(preprocess);
  for (const char* key : {"mean", "std"})
    if (json[key].empty()) json.erase(key);
  return json;
}

void from_config(const ConfigNode& node, ModelRef& ref) {
  ref = ModelRef();
  if (node.value.is_string())
    detail::read_value(node, ref.script);
  else if (node.value.is_object())
    read_fields(node, ref);
  else
    node.fail("expected a path or an object with \"script\" or \"builtin\"");

  if (ref.script.empty() && ref.builtin.empty())
    node.fail("names no model", "give \"script\" (a TorchScript archive) or \"builtin\"");
  if (!ref.script.empty() && !ref.builtin.empty())
    node.fail("has both \"script\" and \"builtin\"", "give one of them");
  if (ref.options.is_null()) ref.options = nlohmann::json::object();
  if (!ref.options.is_object()) node.fail("\"options\" is not an object");
  if (!ref.options.empty() && ref.builtin.empty())
    node.fail("has \"options\" without \"builtin\"", "only builtins have options");
  if (ref.name.empty()) ref.name = default_name(ref);
}

nlohmann::json to_config(const ModelRef& ref) {
  nlohmann::json json = write_fields(ref);
  for (const char* key : {"name", "script", "builtin", "options", "weights"})
    if (json[key].empty() || json[key] == "") json.erase(key);
  return json;
}

}  // namespace weightsmith
