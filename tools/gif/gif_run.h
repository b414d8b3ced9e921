#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
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
  struct Model {
    std::string content;       ///< fingerprint
    std::string architecture;  ///< names and shapes of its parameters
    std::string key;           ///< of its field
    at::Tensor outputs;        ///< at the reference samples, on the CPU, where the task needs them
    /// From the victim, by one gradient at x instead of a path of them; where the task needs it.
    std::optional<double> gradient_distance;
  };

  ScriptModel load(std::size_t index);
  /// What the victim says of the reference samples, where fields need it.
  void read_victims_classes();
  /// Where the configuration leaves it to the run: the least number of steps, of 2, 4, 8, …, whose
  /// distances between some models on some samples change little when it is doubled.
  void choose_steps();
  void read_selection();
  void make_baselines();
  void check_overlap(nlohmann::json& summary) const;
  std::filesystem::path folder() const;
  std::filesystem::path field_path(std::size_t index) const;
  FieldFileWriter::Shape field_shape() const;
  /// What of the configuration a field depends on.
  nlohmann::json field_settings() const;
  bool holds_field(std::size_t index) const;
  /// The model that the task also compares others with by their outputs and by one gradient.
  std::optional<std::size_t> compared_with() const;
  void compute_field(std::size_t index, GradientField& field, FieldFileWriter& writer);
  /// The field's last point alone: gradient × input (samples, 1, D).
  at::Tensor gradient_times_input(ScriptModel& model);
  FieldDistances distances(const std::vector<std::size_t>& models,
                           std::optional<std::size_t> against);
  FieldDistances distances_of_all(std::optional<std::size_t> against);
  std::vector<std::size_t> indices(const std::vector<std::string>& names) const;

  nlohmann::json matrix(std::optional<std::size_t> against);
  nlohmann::json relatedness();
  nlohmann::json ownership();
  nlohmann::json select();
  nlohmann::json unlearning();
  nlohmann::json model_list() const;
  /// Distances to the victim that cost less than fields: disagreement on its mistakes, cosine of
  /// outputs, gradient × input.
  nlohmann::json cheap_distances(std::size_t victim, std::size_t model) const;

  GifConfig config_;
  Run& run_;
  std::optional<Dataset> data_;
  std::string data_content_;
  std::optional<nlohmann::json> selection_;
  FieldInputs inputs_;
  nlohmann::json steps_tried_ = nlohmann::json::array();
  std::vector<Model> models_;
};

}  // namespace weightsmith
