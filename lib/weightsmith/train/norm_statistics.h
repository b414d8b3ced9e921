#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "weightsmith/data/dataset.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/tensor_map.h"
#include "weightsmith/train/train_config.h"

namespace weightsmith {

class Progress;

/// A network's buffers (batch-norm statistics) while several heads train in it and while the result
/// of the training is shown (NormMode). The network always holds those of the head that was shown
/// last, but for the time between show_result() and show_training().
class NormStatistics {
 public:
  /// `mode` is not kAuto. `model` must outlive this.
  NormStatistics(ScriptModel& model, NormMode mode, std::int64_t heads);

  /// Gives the network the buffers of a head. O(buffers) with a set a head, else nothing.
  void show(std::int64_t head);

  /// Gives the network the buffers of the result: with a set a head the mean of the sets (head 0's
  /// where they are integers); with kRecompute, where the result `is_average`, batch-norm
  /// statistics of `data` as its samples are, under the parameters that are shown
  /// (reset_batch_norm). May throw Interrupted: show_training() goes on all the same.
  void show_result(bool is_average, const Dataset& data, std::int64_t batch_size, at::Device device,
                   Progress& progress);
  void show_training();

  /// Every set: `NAME`, with a set a head `HEAD/NAME`. Copies, where there is more than one set.
  TensorMap state();
  /// Throws Error{kInput} naming `where` when names or shapes differ.
  void load_state(const TensorMap& state, const std::string& where);

 private:
  bool per_head() const { return !sets_.empty(); }
  void write(const TensorMap& values);
  TensorMap copy() const;

  ScriptModel& model_;
  NormMode mode_;
  std::vector<TensorMap> sets_;  // one a head; that of shown_ is stale
  std::int64_t shown_ = 0;
  TensorMap saved_;  // those of training, while a result is shown; else empty
};

}  // namespace weightsmith
