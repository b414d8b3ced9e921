#include "weightsmith/train/norm_statistics.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include "weightsmith/core/error.h"
#include "weightsmith/eval/normalization.h"

namespace weightsmith {

NormStatistics::NormStatistics(ScriptModel& model, NormMode mode, std::int64_t heads)
    : model_(model), mode_(mode) {
  WS_CHECK(mode != NormMode::kAuto && heads >= 1);
  if (mode == NormMode::kPerHead && heads > 1)
    for (std::int64_t h = 0; h < heads; ++h) sets_.push_back(copy());
}

TensorMap NormStatistics::copy() const {
  TensorMap copies;
  for (const auto& [name, buffer] : model_.buffers()) copies.emplace(name, buffer.clone());
  return copies;
}

void NormStatistics::write(const TensorMap& values) {
  const at::NoGradGuard no_grad;
  for (auto& [name, buffer] : model_.buffers()) {
    at::Tensor target = buffer;
    target.copy_(values.at(name));
  }
}

void NormStatistics::show(std::int64_t head) {
  if (!per_head() || head == shown_) return;
  sets_[static_cast<std::size_t>(shown_)] = copy();
  shown_ = head;
  write(sets_[static_cast<std::size_t>(shown_)]);
}

void NormStatistics::show_result(bool is_average, const Dataset& data, std::int64_t batch_size,
                                 at::Device device, Progress& progress) {
  WS_CHECK(saved_.empty());
  if (per_head()) {
    saved_ = copy();
    sets_[static_cast<std::size_t>(shown_)] = saved_;
    TensorMap result;
    for (const auto& [name, first] : sets_.front()) {
      at::Tensor mean = first;
      if (first.is_floating_point()) {
        mean = at::zeros_like(first, first.options().dtype(at::kDouble));
        for (const TensorMap& set : sets_) mean += set.at(name);
        mean /= static_cast<double>(sets_.size());
      }
      result.emplace(name, mean);
    }
    write(result);
  } else if (mode_ == NormMode::kRecompute && is_average) {
    saved_ = copy();
    reset_batch_norm(model_, data, batch_size, device, progress);
  }
}

void NormStatistics::show_training() {
  if (saved_.empty()) return;
  write(saved_);
  saved_.clear();
}

TensorMap NormStatistics::state() {
  if (!per_head()) return model_.buffers();
  sets_[static_cast<std::size_t>(shown_)] = copy();
  TensorMap state;
  for (std::size_t h = 0; h < sets_.size(); ++h)
    for (const auto& [name, tensor] : sets_[h])
      state.emplace(fmt::format("{}/{}", h, name), tensor);
  return state;
}

void NormStatistics::load_state(const TensorMap& state, const std::string& where) {
  const TensorMap own = this->state();
  for (const auto& [name, buffer] : own) {
    const auto it = state.find(name);
    if (it == state.end() || it->second.sizes() != buffer.sizes())
      throw Error(ErrorKind::kInput, where,
                  fmt::format("buffer {} does not fit {}", name, model_.where()),
                  "resume with the network the checkpoint was made with");
  }
  if (!per_head()) {
    write(state);
    return;
  }
  const at::NoGradGuard no_grad;
  for (std::size_t h = 0; h < sets_.size(); ++h)
    for (auto& [name, tensor] : sets_[h]) tensor.copy_(state.at(fmt::format("{}/{}", h, name)));
  write(sets_[static_cast<std::size_t>(shown_)]);
}

}  // namespace weightsmith
