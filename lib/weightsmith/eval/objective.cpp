#include "weightsmith/eval/objective.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "weightsmith/config/fields.h"
#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"
#include "weightsmith/data/random_stream.h"
#include "weightsmith/tensor/first_row.h"
#include "weightsmith/tensor/safetensors.h"

namespace weightsmith {

EnumNames<ObjectiveConfig::Type> enum_names(ObjectiveConfig::Type) {
  using enum ObjectiveConfig::Type;
  return {{kCrossEntropy, "cross_entropy"}, {kEmbedding, "embedding"}, {kRegression, "regression"}};
}

EnumNames<RegressionTarget> enum_names(RegressionTarget) {
  return {{RegressionTarget::kImage, "image"}, {RegressionTarget::kEdges, "edges"}};
}

EnumNames<Candidates> enum_names(Candidates) {
  return {{Candidates::kAll, "all"}, {Candidates::kData, "data"}};
}

template <class Fields>
void fields(Fields& f, RandomEmbeddings& c) {
  f("random", c.dimensions);
  f("seed", c.seed);
  f("common", c.common);
}

void from_config(const ConfigNode& node, RandomEmbeddings& config) {
  read_fields(node, config);
  if (config.dimensions < 1) node.fail("`random`, the number of dimensions, must be at least 1");
  if (config.seed < 0) node.fail("`seed` must not be negative");
  if (config.common < 0 || config.common >= 1) node.fail("`common` must lie in [0, 1)");
}

nlohmann::json to_config(const RandomEmbeddings& config) { return write_fields(config); }

namespace {

/// The key `embeddings`: a path, or the parameters of random ones.
struct EmbeddingSource {
  ObjectiveConfig& config;
};

void from_config(const ConfigNode& node, EmbeddingSource& source) {
  if (node.value.is_object()) {
    source.config.embeddings.clear();
    detail::read_value(node, source.config.random_embeddings);
  } else {
    source.config.random_embeddings.reset();
    detail::read_value(node, source.config.embeddings);
  }
}

nlohmann::json to_config(const EmbeddingSource& source) {
  if (source.config.random_embeddings) return to_config(*source.config.random_embeddings);
  if (source.config.embeddings.empty()) return nullptr;
  return source.config.embeddings.string();
}

}  // namespace

template <class Fields>
void fields(Fields& f, ObjectiveConfig& c) {
  EmbeddingSource source{c};
  f("type", c.type);
  f("embeddings", source);
  f("scale", c.scale);
  f("label_smoothing", c.label_smoothing);
  f("candidates", c.candidates);
  f("target", c.target);
}

void from_config(const ConfigNode& node, ObjectiveConfig& config) {
  read_fields(node, config);
  const bool has_embeddings = config.random_embeddings || !config.embeddings.empty();
  if (config.type == ObjectiveConfig::Type::kEmbedding && !has_embeddings)
    node.fail("the objective `embedding` needs `embeddings`",
              R"(name a safetensors file, or {"random": 512})");
  if (config.type != ObjectiveConfig::Type::kEmbedding && has_embeddings)
    node.fail(fmt::format("the objective `{}` has no `embeddings`", enum_name(config.type)),
              R"(add "type": "embedding", or remove them)");
  if (config.is_regression() &&
      (config.label_smoothing != 0 || config.candidates != Candidates::kAll))
    node.fail("a regression has no classes for `label_smoothing` and `candidates` to act on",
              "remove them");
  if (!(config.scale > 0)) node.fail("`scale` must be positive");
  if (!(config.label_smoothing >= 0 && config.label_smoothing < 1))
    node.fail("`label_smoothing` must lie in [0, 1)");
}

nlohmann::json to_config(const ObjectiveConfig& config) { return write_fields(config); }

namespace {

std::vector<double> random_unit_vector(std::uint64_t seed, std::uint64_t row, std::int64_t size) {
  Rng rng(seed, {kEmbeddingStream, row});
  std::vector<double> v(static_cast<std::size_t>(size));
  double squares = 0;
  for (double& x : v) {
    x = rng.normal();
    squares += x * x;
  }
  for (double& x : v) x /= std::sqrt(squares);
  return v;
}

at::Tensor make_random_embeddings(const RandomEmbeddings& config, std::int64_t classes) {
  const auto seed = static_cast<std::uint64_t>(config.seed);
  const std::vector<double> shared = random_unit_vector(seed, 0, config.dimensions);
  at::Tensor rows = at::empty({classes, config.dimensions}, at::kDouble);
  double* out = rows.data_ptr<double>();
  for (std::int64_t c = 0; c < classes; ++c) {
    const std::vector<double> own =
        random_unit_vector(seed, static_cast<std::uint64_t>(c) + 1, config.dimensions);
    for (std::size_t i = 0; i < own.size(); ++i)
      *out++ = std::sqrt(config.common) * shared[i] + std::sqrt(1 - config.common) * own[i];
  }
  return rows;
}

at::Tensor read_embeddings(const std::filesystem::path& path, std::int64_t classes) {
  const SafetensorsFile file = read_safetensors(path);
  const auto it = file.tensors.find("embeddings");
  if (it == file.tensors.end())
    throw Error(ErrorKind::kInput, path.string(), "has no tensor \"embeddings\"",
                "expected `embeddings` (classes, D)");
  const at::Tensor& rows = it->second;
  if (rows.dim() != 2 || !at::isFloatingType(rows.scalar_type()) || rows.size(0) < classes)
    throw Error(
        ErrorKind::kInput, path.string(),
        fmt::format("embeddings are {} of shape [{}], expected floats ({} classes, D)",
                    at::toString(rows.scalar_type()), fmt::join(rows.sizes(), ", "), classes),
        "write one row a class of the whole label space");
  return rows.slice(0, 0, classes).to(at::kDouble);
}

}  // namespace

Objective::Objective(const ObjectiveConfig& config, std::int64_t classes)
    : config_(config), classes_(classes) {
  if (config.type != ObjectiveConfig::Type::kEmbedding) return;
  const at::Tensor rows = config.random_embeddings
                              ? make_random_embeddings(*config.random_embeddings, classes)
                              : read_embeddings(config.embeddings, classes);
  const at::Tensor norms = rows.norm(2, {1}, /*keepdim=*/true);
  if (const auto row = first_row_where(at::isfinite(norms).logical_not()))
    throw Error(ErrorKind::kNumeric, config.embeddings.string(),
                fmt::format("the embedding of class {} is not finite", *row),
                "every class needs a direction");
  if (const auto row = first_row_where(norms == 0))
    throw Error(ErrorKind::kInput, config.embeddings.string(),
                fmt::format("the embedding of class {} is zero", *row),
                "every class needs a direction");
  embeddings_ = rows.div(norms).to(at::kFloat);
}

std::int64_t Objective::output_width() const {
  return embeddings_.defined() ? embeddings_.size(1) : classes_;
}

at::Tensor image_edges(const at::Tensor& images) {
  // Sobel's filters are a smoothing along one axis and a difference along the other.
  const at::Tensor grey = images.to(at::kFloat).mean({1}, /*keepdim=*/true);
  const at::Tensor padded = at::replication_pad2d(grey, {1, 1, 1, 1});  // (B, 1, H + 2, W + 2)
  const auto smoothed = [](const at::Tensor& x, std::int64_t axis) {
    const std::int64_t size = x.size(axis) - 2;
    return x.narrow(axis, 0, size) + 2 * x.narrow(axis, 1, size) + x.narrow(axis, 2, size);
  };
  const auto difference = [](const at::Tensor& x, std::int64_t axis) {
    const std::int64_t size = x.size(axis) - 2;
    return x.narrow(axis, 2, size) - x.narrow(axis, 0, size);
  };
  constexpr std::int64_t kRows = 2;
  constexpr std::int64_t kColumns = 3;
  const at::Tensor across = smoothed(difference(padded, kColumns), kRows);
  const at::Tensor down = smoothed(difference(padded, kRows), kColumns);
  return (across.square() + down.square()).sqrt() / 4;
}

at::Tensor Objective::targets(const at::Tensor& inputs) const {
  WS_CHECK(is_regression());
  if (config_.target == RegressionTarget::kImage) return inputs;
  if (inputs.dim() != 4)
    throw Error(
        ErrorKind::kInput, "objective",
        fmt::format("there are no edges in inputs of shape [{}]", fmt::join(inputs.sizes(), ", ")),
        "edges need images (B, C, H, W)");
  return image_edges(inputs);
}

at::Tensor Objective::residuals(const at::Tensor& outputs, const at::Tensor& inputs) const {
  const at::Tensor wanted = targets(inputs);
  const std::int64_t samples = wanted.size(0);
  if (outputs.dim() < 2 || outputs.size(0) != samples || outputs.numel() != wanted.numel())
    throw Error(ErrorKind::kInput, "objective",
                fmt::format("the network's outputs have shape [{}], expected [{}] or these values "
                            "in a row",
                            fmt::join(outputs.sizes(), ", "), fmt::join(wanted.sizes(), ", ")),
                fmt::format("give the network {} outputs", wanted.numel() / samples));
  return outputs.to(at::kFloat).reshape({samples, -1}) -
         wanted.to(at::kFloat).reshape({samples, -1});
}

void Objective::check_outputs(const at::Tensor& outputs, const at::Tensor& inputs) const {
  if (is_regression())
    residuals(outputs, inputs);
  else
    scores(outputs);
}

at::Tensor Objective::scores(const at::Tensor& outputs) const {
  WS_CHECK(!is_regression());
  if (outputs.dim() != 2 || outputs.size(1) != output_width())
    throw Error(
        ErrorKind::kInput, config_.embeddings.empty() ? "objective" : config_.embeddings.string(),
        fmt::format("the network's outputs have shape [{}], expected (B, {})",
                    fmt::join(outputs.sizes(), ", "), output_width()),
        embeddings_.defined() ? "give the network as many outputs as the embeddings have"
                              : fmt::format("the data have {0} classes, labels go from 0 to "
                                            "{1}: give the network {0} outputs",
                                            output_width(), output_width() - 1));
  const auto bar = [this](const at::Tensor& scores) {
    constexpr double kNever = -std::numeric_limits<double>::infinity();
    return barred_.defined() ? scores.masked_fill(barred_.to(scores.device()), kNever) : scores;
  };
  const at::Tensor values = outputs.to(at::kFloat);
  if (!embeddings_.defined()) return bar(values);
  constexpr double kSmallestNorm = 1e-12;  // a zero output scores 0 everywhere
  const at::Tensor directions =
      values / values.norm(2, {1}, /*keepdim=*/true).clamp_min(kSmallestNorm);
  return bar(directions.matmul(embeddings_.to(values.device()).t()) * config_.scale);
}

at::Tensor Objective::loss(const at::Tensor& outputs, const at::Tensor& labels,
                           const at::Tensor& inputs) const {
  if (is_regression()) return residuals(outputs, inputs).square().mean();
  at::Tensor competing = scores(outputs);
  at::Tensor targets = labels;
  if (barred_.defined()) {
    // Only the columns that compete: label smoothing would give the others a share of infinity.
    competing = competing.index_select(1, competing_.to(competing.device()));
    targets = position_.to(labels.device()).index_select(0, labels);
  }
  return at::cross_entropy_loss(competing, targets, /*weight=*/{}, at::Reduction::Mean,
                                /*ignore_index=*/-100, config_.label_smoothing);
}

Objective Objective::restricted_to(const std::vector<std::int64_t>& classes) const {
  Objective restricted = *this;
  restricted.barred_ = at::ones({classes_}, at::kBool);
  for (const std::int64_t c : classes) {
    WS_CHECK(c >= 0 && c < classes_);
    restricted.barred_[c] = false;
  }
  restricted.competing_ = restricted.barred_.logical_not().nonzero().squeeze(1);
  restricted.position_ = restricted.barred_.logical_not().cumsum(0) - 1;
  return restricted;
}

void Objective::to(at::Device device) {
  for (at::Tensor* own : {&embeddings_, &barred_, &competing_, &position_})
    if (own->defined()) *own = own->to(device);
}

}  // namespace weightsmith
