#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/run.h"
#include "weightsmith/data/dataset.h"
#include "weightsmith/distance/gif_config.h"

namespace weightsmith {

/// A tensor's values, in order.
std::vector<double> values_of(const at::Tensor& tensor);
/// NumPy's format 1.0: a float64 array in C order.
std::string npy(const at::Tensor& values);
/// For tables that people read.
std::string number(double value);

/// Distances of models to one that cost less than fields, by name; NaN where there is none.
using CheapDistances = std::map<std::string, std::vector<double>>;
/// gradient_input: one gradient at x instead of a path of them, the same distance; victim_mistakes:
/// the share of the one's mistakes that the other does not make likewise; output_cosine: 1 − cosine
/// of the outputs; cka: 1 − linear CKA of what the last layer reads.
const std::vector<std::string>& cheap_names();

/// The steps of one run of modelgif-dist, in the order main calls them.
class GifRun {
 public:
  GifRun(GifConfig config, Run& run) : config_(std::move(config)), run_(run) {}

  /// Reads reference samples, their selection and their baselines.
  void load_reference();
  /// Loads every model once: whether it fits, and what its content is called.
  void try_out();
  nlohmann::json plan() const;
  /// Computes the fields that the cache does not hold.
  void compute_fields();
  /// Distances and what the task makes of them.
  nlohmann::json run_task();

  /// One model's field as a file, for the subcommand.
  nlohmann::json write_field(const std::filesystem::path& path);

 private:
  /// What a run computes and keeps of every model: the field that it is configured for, and
  /// gradient × input, the last point of a path by itself, to compare it with.
  enum class FieldKind { kPath, kGradient };

  struct Model {
    std::string content;                    ///< fingerprint
    std::string architecture;               ///< names and shapes of its parameters
    std::map<FieldKind, std::string> keys;  ///< of its fields
    bool has_gradient = true;  ///< × input, which may be infinite where the path's are not
    /// At the reference samples, on the CPU: outputs, and what the last layer reads (S, F).
    at::Tensor outputs, features;
    /// How far fields of the faster network are from the plain one's, and whether it is used; kept
    /// as the note of the field's file.
    nlohmann::json faster;
  };

  ScriptModel load(std::size_t index);
  /// What the victim says of the reference samples, where fields need it.
  void read_victims_classes();
  /// Where the configuration leaves it to the run: the least number of steps, of 2, 4, 8, …, whose
  /// distances between some models on some samples change little when it is doubled.
  void choose_steps();
  void read_selection();
  void make_baselines();
  /// Names of the judged models that the reference samples were selected with; null where there is
  /// no selection. Throws Error{kInput} where there are some and the task does not allow it.
  nlohmann::json selection_overlap() const;
  std::filesystem::path folder() const;
  FieldConfig settings(FieldKind kind) const;
  std::filesystem::path field_path(std::size_t index, FieldKind kind = FieldKind::kPath) const;
  FieldFileWriter::Shape field_shape(FieldKind kind = FieldKind::kPath) const;
  FieldFile stored_field(std::size_t index, FieldKind kind = FieldKind::kPath) const;
  bool holds_field(std::size_t index, FieldKind kind = FieldKind::kPath) const;
  /// The network that fields are computed with: a faster form of `plain` where it is close enough.
  ScriptModel field_network(std::size_t index, ScriptModel& plain);
  /// Model::faster as a note for the field's file, and from one that is there already.
  std::string note(std::size_t index) const;
  void read_note(std::size_t index);
  /// Sees to it that the cache has the field of `plain`.
  void keep_field(std::size_t index, FieldKind kind, ScriptModel& plain);
  void compute_field(std::size_t index, FieldKind kind, GradientField& field,
                     FieldFileWriter& writer);
  FieldDistances stored_distances(const std::vector<std::size_t>& models,
                                  std::optional<std::size_t> against, FieldKind kind) const;
  /// By the field, counting its steps without length.
  FieldDistances distances(const std::vector<std::size_t>& models,
                           std::optional<std::size_t> against);
  /// By gradient × input: (models, S) from `from`, NaN where there is none.
  at::Tensor gradient_distances(const std::vector<std::size_t>& models, std::size_t from) const;
  std::vector<std::size_t> all_models() const;
  std::vector<std::size_t> indices(const std::vector<std::string>& names) const;

  nlohmann::json matrix();
  nlohmann::json against_one();
  nlohmann::json relatedness();
  nlohmann::json ownership();
  nlohmann::json select();
  nlohmann::json unlearning();
  nlohmann::json model_list() const;

  /// Keeps the outputs and features of a model, unless they are too many.
  void keep_outputs(std::size_t index, ScriptModel& model, GradientField& field);
  /// The distances of `models` to `from` at some samples; `gradient`: (models, S) of those to
  /// `from` by gradient × input.
  CheapDistances cheap_distances(std::size_t from, const std::vector<std::size_t>& models,
                                 const at::Tensor& gradient, const at::Tensor& samples) const;
  /// Of all pairs, as far as all models have them; of victim_mistakes a row's model is the victim.
  std::map<std::string, at::Tensor> cheap_matrices() const;
  /// Distances of all models to one.
  struct DistanceList {
    FieldDistances field;
    BootstrapLimits limits;  ///< of the field's; undefined without `bootstrap`
    at::Tensor gradient;     ///< (models, S), by gradient × input
    CheapDistances cheap;
  };
  DistanceList distances_to(std::size_t from);
  /// Writes the list as distances.csv (`more`: columns of the caller's), distances.npy and
  /// per_sample.npy; the same as JSON.
  nlohmann::json write_list(const DistanceList& list,
                            const std::map<std::string, std::vector<std::string>>& more = {});
  /// 95 % intervals by resampling samples; undefined without `bootstrap`.
  BootstrapLimits limits_of(const at::Tensor& per_sample) const;

  /// The distances of all models to the victim, by name ("" is the field's), on some samples.
  using Distances = std::map<std::string, std::vector<double>>;
  /// AUC of every group against the number of samples: curve.csv, curve.svg and an object a group.
  std::map<std::string, nlohmann::json> curves(
      const std::function<Distances(const at::Tensor& samples)>& measured);
  nlohmann::json group_entry(const ModelGroup& group, const Distances& measured, double threshold,
                             const BootstrapLimits& limits) const;
  std::vector<double> chosen(const std::vector<double>& distances,
                             const std::vector<std::string>& names) const;

  GifConfig config_;
  Run& run_;
  std::optional<Dataset> data_;
  std::string data_content_;
  std::optional<nlohmann::json> selection_;
  FieldInputs inputs_;
  std::vector<std::int64_t> zero_norms_;  ///< of each model, as far as distances have seen it
  nlohmann::json steps_tried_ = nlohmann::json::array();
  std::vector<Model> models_;
};

}  // namespace weightsmith
