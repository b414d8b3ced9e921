#include "weightsmith/merge/landscape.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/threads.h"

namespace weightsmith {

TensorMap blended_state(const std::vector<TensorMap>& states, const std::vector<double>& weights) {
  WS_CHECK(!states.empty() && states.size() == weights.size());
  const at::NoGradGuard no_grad;
  TensorMap blend;
  for (const auto& [name, first] : states.front()) {
    if (!first.is_floating_point()) {
      blend[name] = first.detach();
      continue;
    }
    const auto wide = first.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    at::Tensor sum = at::zeros(first.sizes(), first.options().dtype(wide).requires_grad(false));
    for (std::size_t i = 0; i < states.size(); ++i)
      if (weights[i] != 0) sum.add_(states[i].at(name).detach().to(wide), weights[i]);
    blend[name] = sum.to(first.scalar_type());
  }
  return blend;
}

std::optional<ModelPlane> ModelPlane::through(const TensorMap& a, const TensorMap& b,
                                              const TensorMap& c,
                                              const std::set<std::string>& buffers) {
  const at::NoGradGuard no_grad;
  double bb = 0;
  double bc = 0;
  double cc = 0;
  for (const auto& [name, tensor] : a) {
    if (!tensor.is_floating_point() || buffers.contains(name)) continue;
    const at::Tensor origin = tensor.detach().to(at::kDouble);
    const at::Tensor to_b = b.at(name).detach().to(at::kDouble) - origin;
    const at::Tensor to_c = c.at(name).detach().to(at::kDouble) - origin;
    bb += (to_b * to_b).sum().item<double>();
    bc += (to_b * to_c).sum().item<double>();
    cc += (to_c * to_c).sum().item<double>();
  }
  const double height = bb > 0 ? cc - bc * bc / bb : 0;
  if (!(height > 1e-12 * std::max(bb, cc))) return std::nullopt;
  ModelPlane plane;
  plane.places_ = {{{0, 0}, {std::sqrt(bb), 0}, {bc / std::sqrt(bb), std::sqrt(height)}}};
  return plane;
}

std::array<double, 3> ModelPlane::weights(double x, double y) const {
  const double c = y / places_[2][1];
  const double b = (x - c * places_[2][0]) / places_[1][0];
  return {1 - b - c, b, c};
}

std::vector<double> ModelPlane::grid(int axis, std::int64_t points, double margin) const {
  WS_CHECK(points >= 2);
  const auto [low, high] = std::minmax({places_[0][axis], places_[1][axis], places_[2][axis]});
  const double from = low - margin * (high - low);
  const double step = (high - low) * (1 + 2 * margin) / static_cast<double>(points - 1);
  std::vector<double> values;
  for (std::int64_t i = 0; i < points; ++i) values.push_back(from + step * static_cast<double>(i));
  return values;
}

double loss_barrier(const std::vector<double>& at, const std::vector<double>& loss) {
  WS_CHECK(at.size() == loss.size() && !at.empty());
  double barrier = 0;
  for (std::size_t k = 0; k < at.size(); ++k) {
    const double chord = (1 - at[k]) * loss.front() + at[k] * loss.back();
    if (std::isnan(loss[k] - chord)) return loss[k] - chord;
    barrier = std::max(barrier, loss[k] - chord);
  }
  return barrier;
}

void score_networks(const ScriptModel& pattern, std::int64_t count, int threads,
                    const std::function<TensorMap(std::int64_t)>& state,
                    const std::function<std::vector<Evaluation>(std::int64_t, ScriptModel&)>& score,
                    const std::function<void(std::int64_t, const std::vector<Evaluation>&)>& done) {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::pair<std::int64_t, std::vector<Evaluation>>> finished;
  std::exception_ptr error;
  std::atomic<std::int64_t> next{0};
  std::int64_t working = std::min<std::int64_t>(std::max(threads, 1), count);

  const auto work = [&] {
    try {
      keep_to_one_thread();
      std::optional<ScriptModel> copy;
      {
        const std::lock_guard lock(mutex);
        copy = pattern.clone();
      }
      ScriptModel& network = *copy;
      for (std::int64_t k = next++; k < count; k = next++) {
        network.load_state(state(k), network.where());
        auto scores = score(k, network);
        const std::lock_guard lock(mutex);
        finished.emplace_back(k, std::move(scores));
        changed.notify_one();
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      next = count;
    }
    const std::lock_guard lock(mutex);
    --working;
    changed.notify_one();
  };

  std::vector<std::thread> workers;
  for (std::int64_t t = working; t > 0; --t) workers.emplace_back(work);
  try {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [&] { return !finished.empty() || working == 0; });
      if (finished.empty()) break;
      const auto result = std::move(finished.front());
      finished.pop_front();
      lock.unlock();
      done(result.first, result.second);
      lock.lock();
    }
  } catch (...) {
    const std::lock_guard lock(mutex);
    error = std::current_exception();
    next = count;
  }
  for (std::thread& worker : workers) worker.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace weightsmith
