#include "weightsmith/train/distillation.h"

#include <ATen/ATen.h>

namespace weightsmith {
namespace {

ScriptModel load_teacher(const DistillationConfig& config, at::Device device, bool trust) {
  LoadOptions load;
  load.device = device;
  load.trust = trust;
  ScriptModel teacher = ScriptModel::load(config.teacher, load);
  teacher.train(false);
  return teacher;
}

/// KL divergence of the students' from the teachers' distributions, mean over rows (B, C). Scores
/// of -infinity are out of both.
at::Tensor mean_divergence(const at::Tensor& student, const at::Tensor& teacher) {
  const at::Tensor out = student.isinf();
  const at::Tensor log_p = at::log_softmax(teacher, 1).masked_fill(out, 0.0);
  const at::Tensor log_q = at::log_softmax(student, 1).masked_fill(out, 0.0);
  return (log_p.exp() * (log_p - log_q)).sum(1).mean();
}

}  // namespace

Distillation::Distillation(const DistillationConfig& config, at::Device device, bool trust)
    : config_(config), teacher_(load_teacher(config, device, trust)) {}

at::Tensor Distillation::loss(const Objective& objective, const at::Tensor& outputs,
                              const at::Tensor& inputs, const at::Tensor& label_loss) {
  at::Tensor scores;
  {
    const at::NoGradGuard no_grad;
    scores = objective.scores(teacher_.forward(inputs));
  }
  const double t = config_.temperature;
  const at::Tensor learnt =
      config_.type == DistillationConfig::Type::kHard
          ? objective.loss(outputs, scores.argmax(1), inputs)
          : mean_divergence(objective.scores(outputs) / t, scores / t) * (t * t);
  if (config_.weight == 1) return learnt;
  return learnt * config_.weight + label_loss * (1 - config_.weight);
}

}  // namespace weightsmith
