#pragma once

#include <ATen/core/Tensor.h>

#include "weightsmith/eval/objective.h"
#include "weightsmith/model/script_model.h"
#include "weightsmith/train/train_config.h"

namespace weightsmith {

/// Learning from a teacher network (Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural
/// Network", 2015). The loss of a batch is
///     (1 − w) · L(labels) + w · D
/// with the objective's own loss L and, for temperature T and class scores z of student and
/// teacher,
/// - soft: D = T² · KL(softmax(z_teacher / T) ‖ softmax(z_student / T)), mean over the batch
///   (section 2: T² keeps gradients of one size when T changes; the paper's cross-entropy differs
///   from KL by a constant);
/// - hard: D = L(argmax z_teacher): the teacher's decisions as labels.
/// The teacher sees what the student sees, in eval mode, and is not trained. Classes that do not
/// compete (Objective::restricted_to) have no part in D.
class Distillation {
 public:
  /// Loads the teacher. Throws as ScriptModel::load does.
  Distillation(const DistillationConfig& config, at::Device device, bool trust);

  /// The loss of a student's `outputs` (B, D) for `inputs` (B, ...), given what they lose by the
  /// labels, L(labels); a differentiable scalar.
  at::Tensor loss(const Objective& objective, const at::Tensor& outputs, const at::Tensor& inputs,
                  const at::Tensor& label_loss);

  const ScriptModel& teacher() const { return teacher_; }

 private:
  DistillationConfig config_;
  ScriptModel teacher_;
};

}  // namespace weightsmith
