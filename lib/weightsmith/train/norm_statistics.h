#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "weightsmith/data/dataset.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/tensor/tensor_map.h"
#include "weightsmith/train/train_config.h"

namespace weightsmith {

class Progress;

/// What to say of batch norms that do not listen to training mode (batch_norm_uses); "" without
/// any, and of a graph that cannot be followed.
std::string frozen_norm_warning(const ScriptModel& model);

/// What one pass of training leaves of each of a network's running means and variances, by the
/// names of their buffers: 1 − the momentum, times the same for every further use of the buffer, as
/// one pass over `inputs` (B, …) in eval mode shows them. Throws Error{kInput} naming the network
/// when its graph cannot be followed, Error{kConfig} when a batch norm has a momentum of 0, as one
/// has there that averages over all batches alike.
std::map<std::string, double> batch_norm_decays(ScriptModel& model, const at::Tensor& inputs);

/// Whether one of two modes trains with a set of statistics a head, and the other with a shared
/// one.
bool is_other_kind_of_set(NormMode mode, NormMode own);

/// A network's buffers (batch-norm statistics) while several heads train in it and while the result
/// of the training is shown (NormMode). The network always holds those of the head that was shown
/// last, but for the time between show_result() and show_training().
///
/// Where results are to be shown in other modes as well, the sets of the other kind (a set a head,
/// or the shared one) are kept beside. A pass of training takes the running statistics r of the set
/// that is shown to d·r + b, where b comes of the batch and d of the momentum; the other set
/// follows by the difference, r' ← d·(r' − r) + r_new, which is what the same pass would have made
/// of it up to rounding: in training no output depends on them.
class NormStatistics {
 public:
  /// `mode` is not kAuto. `model` must outlive this. With `decays` (batch_norm_decays) the sets
  /// of the other kind are kept, too.
  NormStatistics(ScriptModel& model, NormMode mode, std::int64_t heads,
                 std::map<std::string, double> decays = {});

  /// Gives the network the buffers of a head. O(buffers) with a set a head, else nothing.
  void show(std::int64_t head);

  /// Around every forward pass of training, of the head that show() was told of last: moves the
  /// sets that are kept beside. O(buffers) where there are any, else nothing.
  void begin_pass();
  void end_pass();

  /// Gives the network the buffers of the result in `mode` (not kAuto), the constructor's or, with
  /// decays, any: with a set a head the mean of the sets (head 0's
  /// where they are integers); with kRecompute, where the result `is_average`, batch-norm
  /// statistics of `data` as its samples are, under the parameters that are shown
  /// (reset_batch_norm). May throw Interrupted: show_training() goes on all the same.
  void show_result(NormMode mode, bool is_average, const Dataset& data, std::int64_t batch_size,
                   at::Device device, Progress& progress);
  void show_training();

  /// Every set: `NAME`, with a set a head `HEAD/NAME`; those beside `beside/HEAD/NAME`. Copies,
  /// where there is more than one set.
  TensorMap state();
  /// Throws Error{kInput} naming `where` when names or shapes differ.
  void load_state(const TensorMap& state, const std::string& where);

 private:
  bool per_head() const { return !sets_.empty(); }
  TensorMap own_state();
  void write(const TensorMap& values);
  TensorMap copy() const;

  ScriptModel& model_;
  NormMode mode_;
  std::map<std::string, double> decays_;
  std::vector<TensorMap> sets_;    // one a head; that of shown_ is stale
  std::vector<TensorMap> beside_;  // one a head where sets_ has none, else the shared one; or none
  std::int64_t shown_ = 0;         // head
  TensorMap before_;               // during a pass of training
  TensorMap saved_;                // those of training, while a result is shown; else empty
};

}  // namespace weightsmith
