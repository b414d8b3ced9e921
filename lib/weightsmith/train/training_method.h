#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "weightsmith/tensor/tensor_map.h"
#include "weightsmith/train/base_optimizer.h"
#include "weightsmith/train/parameter_arena.h"

namespace weightsmith {

/// What is made of the base optimiser's steps: which weights the next gradient is taken at, and
/// which weights are the result. The parameters of the arena show the former while training and the
/// latter between show_result() and show_training().
///
/// A method is a class derived from this and an entry in `make_method` (train/methods.h).
class TrainingMethod {
 public:
  virtual ~TrainingMethod() = default;
  TrainingMethod(const TrainingMethod&) = delete;
  TrainingMethod& operator=(const TrainingMethod&) = delete;

  /// BaseOptimizer::set_parameters; no part of the state.
  void set_parameters(const std::vector<ParameterSettings>& settings) {
    optimizer_.set_parameters(settings);
  }

  /// One step of the base optimiser on the weights that are shown, with the gradients of the
  /// arena's parameters (one without a gradient stays as it is), which are dropped; then whatever
  /// the method makes of it. Shows the weights that the next gradient is taken at.
  void step(double lr);

  /// The same with gradients that are of no use: they are dropped, and the weights that are shown
  /// and the momenta stay as they are. The step is counted, so that heads, schedules and averages
  /// go on in time.
  void skip_step();

  /// Steps of the base optimiser so far, of all heads together.
  std::int64_t steps() const { return steps_; }
  /// The head that the next step is made on.
  virtual std::int64_t head() const { return 0; }

  /// Shows the weights to evaluate and to save. Call show_training() to go on.
  virtual void show_result() { arena_.show(0); }
  void show_training() { arena_.show(head()); }
  /// Whether the result is, at this moment, an average that no step was made on, so that
  /// batch-norm statistics collected while training belong to other weights.
  virtual bool result_is_average() const { return false; }

  /// Whether the loss of the weights that are shown on the validation set is wanted before the next
  /// step. Depends on the state alone.
  virtual bool wants_validation() const { return false; }
  virtual void observe_validation(double /*loss*/) {}

  /// Everything that a later step depends on, but steps(): `heads` (d, width), the base optimiser's
  /// state and the method's own. The tensors are the live ones.
  TensorMap state() const;
  /// Restores a state, copied. Throws Error{kInput} naming `where` when names or shapes differ.
  void load_state(const TensorMap& state, std::int64_t steps, const std::string& where);

 protected:
  /// `arena` must outlive this.
  TrainingMethod(ParameterArena& arena, const BaseOptions& options)
      : arena_(arena), optimizer_(arena, options) {}

  /// Called after the base optimiser's step on `stepped`, or after one that was skipped; steps()
  /// counts it.
  virtual void after_step(std::int64_t stepped) = 0;
  /// Makes a tensor part of the state.
  at::Tensor keep(const std::string& name, at::Tensor tensor);

  ParameterArena& arena_;

 private:
  void finish_step(std::int64_t stepped);

  BaseOptimizer optimizer_;
  std::int64_t steps_ = 0;
  TensorMap own_;
};

}  // namespace weightsmith
