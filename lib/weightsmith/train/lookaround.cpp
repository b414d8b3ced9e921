#include "weightsmith/train/lookaround.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include "weightsmith/core/error.h"

namespace weightsmith {

Lookaround::Lookaround(ParameterArena& arena, const SgdOptions& options, std::int64_t k)
    : arena_(arena), options_(options), k_(k) {
  WS_CHECK(k >= 1);
  if (options.momentum != 0) momenta_ = at::zeros_like(arena.values());
  const auto parameters = static_cast<std::int64_t>(arena.segments().size());
  started_ = at::zeros({arena.heads(), parameters}, at::kByte);
}

void Lookaround::step(double lr) {
  const std::int64_t head = steps_ % arena_.heads();
  at::Tensor values = arena_.head(head);
  at::Tensor momenta = momenta_.defined() ? momenta_[head] : at::Tensor();
  auto* started = started_[head].data_ptr<std::uint8_t>();
  for (std::size_t i = 0; i < arena_.segments().size(); ++i) {
    const auto& segment = arena_.segments()[i];
    at::Tensor& gradient = arena_.parameters()[i].mutable_grad();
    if (!gradient.defined()) continue;
    at::Tensor own_values = values.narrow(0, segment.offset, segment.numel);
    at::Tensor own_momenta =
        momenta.defined() ? momenta.narrow(0, segment.offset, segment.numel) : at::Tensor();
    sgd_step(options_, lr, started[i] == 0, gradient, own_values, own_momenta);
    started[i] = 1;
    gradient.reset();
  }
  ++steps_;
  if (arena_.heads() == 1) return;
  if (steps_ % (arena_.heads() * k_) == 0) arena_.average();
  show_head();
}

void Lookaround::show_average() {
  // Right after an average every head is the mean; taking it again would only round it.
  if (arena_.heads() == 1 || steps_ % (arena_.heads() * k_) == 0) {
    arena_.show(0);
  } else {
    arena_.show_mean();
  }
}

void Lookaround::show_head() { arena_.show(steps_ % arena_.heads()); }

TensorMap Lookaround::state() const {
  TensorMap state{{"heads", arena_.values()}, {"started", started_}};
  if (momenta_.defined()) state.emplace("momenta", momenta_);
  return state;
}

void Lookaround::load_state(const TensorMap& state, std::int64_t steps, const std::string& where) {
  TensorMap own = this->state();
  for (auto& [name, target] : own) {
    const auto it = state.find(name);
    if (it == state.end() || it->second.sizes() != target.sizes() ||
        it->second.scalar_type() != target.scalar_type())
      throw Error(ErrorKind::kInput, where,
                  fmt::format("tensor {} does not fit this network and method", name),
                  "resume with the configuration the checkpoint was made with");
    const at::NoGradGuard no_grad;
    target.copy_(it->second);
  }
  steps_ = steps;
  show_head();
}

}  // namespace weightsmith
