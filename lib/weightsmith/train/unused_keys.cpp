#include "weightsmith/train/unused_keys.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>

#include "weightsmith/config/enum_names.h"

namespace weightsmith {
namespace {

/// A key that not every type of its section uses.
template <class Type>
struct KeyOfTypes {
  const char* key;
  std::vector<Type> types;
};

std::vector<KeyOfTypes<MethodConfig::Type>> keys_of_types(MethodConfig::Type) {
  using Type = MethodConfig::Type;
  return {
      {"heads", {Type::kLookaround}},
      {"k", {Type::kLookaround, Type::kLookahead}},
      {"alpha", {Type::kLookahead}},
      {"slow_from", {Type::kLookahead}},
      {"decay", {Type::kEma}},
      {"start_epoch", {Type::kSwa}},
      {"every", {Type::kSwa}},
      {"lr", {Type::kSwa}},
      {"anneal_epochs", {Type::kSwa}},
      {"n_s", {Type::kSwad}},
      {"n_e", {Type::kSwad}},
      {"r", {Type::kSwad}},
      {"validate_every", {Type::kSwad}},
      // Plain training has one set, and no average to compute it for.
      {"batch_norm", {Type::kLookaround, Type::kSwa, Type::kSwad, Type::kLookahead, Type::kEma}},
      {"batch_norm_scores",
       {Type::kLookaround, Type::kSwa, Type::kSwad, Type::kLookahead, Type::kEma}}};
}

std::vector<KeyOfTypes<OptimizerConfig::Type>> keys_of_types(OptimizerConfig::Type) {
  using Type = OptimizerConfig::Type;
  return {{"momentum", {Type::kSgd}},
          {"dampening", {Type::kSgd}},
          {"nesterov", {Type::kSgd}},
          {"beta1", {Type::kAdam, Type::kAdamW}},
          {"beta2", {Type::kAdam, Type::kAdamW}},
          {"epsilon", {Type::kAdam, Type::kAdamW}}};
}

std::vector<KeyOfTypes<ScheduleConfig::Type>> keys_of_types(ScheduleConfig::Type) {
  using Type = ScheduleConfig::Type;
  return {{"min_lr", {Type::kCosine, Type::kOneCycle}},
          {"milestones", {Type::kMultiStep}},
          {"gamma", {Type::kMultiStep}},
          {"peak", {Type::kOneCycle}},
          {"start_divisor", {Type::kOneCycle}}};
}

template <class T>
bool has(const std::vector<T>& values, const T& value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

/// "a", "a or b", "a, b or c".
template <class Type>
std::string any_of(const std::vector<Type>& types) {
  std::string text;
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (i > 0) text += i + 1 < types.size() ? ", " : " or ";
    text += enum_name(types[i]);
  }
  return text;
}

/// Whether a key was given that says more than the section spelled out does.
template <class Section>
bool says_something(const Section& section, const std::string& key) {
  if (!has(section.given, key)) return false;
  const nlohmann::json defaults = to_config(Section{});
  const bool is_spelled_out =
      std::all_of(defaults.items().begin(), defaults.items().end(),
                  [&](const auto& item) { return has(section.given, std::string(item.key())); });
  return !is_spelled_out || to_config(section).at(key) != defaults.value(key, nlohmann::json());
}

/// Of a section with one type.
template <class Section>
void add_unused(const Section& section, const std::string& name, std::vector<std::string>& all) {
  for (const auto& [key, types] : keys_of_types(section.type))
    if (!has(types, section.type) && says_something(section, key))
      all.push_back(fmt::format(
          "{0}.{1} has no effect with {0}.type {2}: it is a key of {3} (remove it, or change the "
          "type)",
          name, key, enum_name(section.type), any_of(types)));
}

/// SWA anneals to a rate of its own: without one there is nothing to get to.
bool lacks_annealed_rate(const MethodConfig& method) {
  return method.type == MethodConfig::Type::kSwa && !method.lr;
}

std::string without_annealed_rate(const std::string& section) {
  return fmt::format(
      "{0}.anneal_epochs has no effect without {0}.lr: it is over how many epochs swa gets to that "
      "rate (set {0}.lr, or remove it)",
      section);
}

void add_unused_annealing(const TrainConfig& config, std::vector<std::string>& all) {
  const bool is_said = says_something(config.method, "anneal_epochs");
  if (config.compare.empty()) {
    if (is_said && lacks_annealed_rate(config.method))
      all.push_back(without_annealed_rate("method"));
    return;
  }
  bool swa_lacks_rate = false;
  bool swa_has_rate = false;
  for (std::size_t i = 0; i < config.compare.size(); ++i) {
    const MethodConfig method = config.compared_method(i);
    if (!lacks_annealed_rate(method)) {
      swa_has_rate |= method.type == MethodConfig::Type::kSwa;
      continue;
    }
    const nlohmann::json own = config.compare[i].overrides.value("anneal_epochs", nlohmann::json());
    if (!own.is_null()) all.push_back(without_annealed_rate(fmt::format("compare[{}]", i)));
    swa_lacks_rate |= own.is_null();
  }
  if (is_said && swa_lacks_rate && !swa_has_rate) all.push_back(without_annealed_rate("method"));
}

void add_unused_of_comparison(const TrainConfig& config, std::vector<std::string>& all) {
  std::vector<MethodConfig::Type> compared;
  for (std::size_t i = 0; i < config.compare.size(); ++i)
    compared.push_back(config.compared_method(i).type);
  for (const auto& [key, types] : keys_of_types(config.method.type)) {
    const auto uses = [&users = types](MethodConfig::Type type) { return has(users, type); };
    if (says_something(config.method, key) && std::none_of(compared.begin(), compared.end(), uses))
      all.push_back(
          fmt::format("method.{} has no effect: it is a key of {}, which is not compared (remove "
                      "it, or compare such a method)",
                      key, any_of(types)));
    for (std::size_t i = 0; i < compared.size(); ++i) {
      const nlohmann::json& overrides = config.compare[i].overrides;
      if (overrides.contains(key) && !overrides.at(key).is_null() && !uses(compared[i]))
        all.push_back(
            fmt::format("compare[{}].{} has no effect with {}: it is a key of {} (remove it, or "
                        "change the type)",
                        i, key, enum_name(compared[i]), any_of(types)));
    }
  }
}

}  // namespace

std::vector<std::string> unused_key_warnings(const TrainConfig& config) {
  std::vector<std::string> all;
  if (config.compare.empty()) {
    add_unused(config.method, "method", all);
  } else {
    add_unused_of_comparison(config, all);
  }
  add_unused_annealing(config, all);
  add_unused(config.optimizer, "optimizer", all);
  add_unused(config.schedule, "schedule", all);
  return all;
}

}  // namespace weightsmith
