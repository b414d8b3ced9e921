#include "weightsmith/eval/normalization.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include "weightsmith/core/rng.h"
#include "weightsmith/core/stop.h"
#include "weightsmith/data/random_stream.h"
#include "weightsmith/eval/batch_norm_observer.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {
namespace {

/// Whether neighbours are of one class far more often than in a random order.
bool comes_by_class(const at::Tensor& labels) {
  const at::Tensor flat = labels.contiguous();
  const auto* label = flat.data_ptr<std::int64_t>();
  const std::int64_t n = flat.numel();
  std::map<std::int64_t, double> counts;
  std::int64_t changes = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    ++counts[label[i]];
    if (i > 0 && label[i] != label[i - 1]) ++changes;
  }
  double mixed = 1;  // the share of neighbours of two classes, in a random order
  for (const auto& [one, count] : counts) mixed -= std::pow(count / static_cast<double>(n), 2);
  return static_cast<double>(changes) < mixed * static_cast<double>(n - 1) / 2;
}

/// Samples [begin, begin + count) of a set, in the order that its statistics are taken in: its own,
/// or a random one (always the same) where a batch would otherwise not look like the set.
class BatchesLikeTheSet {
 public:
  explicit BatchesLikeTheSet(const Dataset& data) : data_(data) {
    if (!comes_by_class(data.labels)) return;
    // Names of a folder's files need not be copied with every batch.
    data_.files.clear();
    data_.listing.reset();
    data_.skipped.clear();
    Rng rng(0, {kNormOrderStream});
    order_ = random_permutation(data.size(), rng);
  }

  at::Tensor batch(std::int64_t begin, std::int64_t count) const {
    if (order_.empty()) return normalised_batch(data_, begin, count);
    const auto first = order_.begin() + begin;
    return normalised_batch(subset(data_, {first, first + count}), 0, count);
  }

 private:
  Dataset data_;
  std::vector<std::int64_t> order_;  // empty: as they come
};

}  // namespace

std::int64_t reset_batch_norm(ScriptModel& model, const Dataset& data, std::int64_t batch_size,
                              at::Device device, Progress& progress) {
  const at::NoGradGuard no_grad;
  model.train(false);
  const GraphRunner runner(model.module(), model.where());
  BatchNormObserver observer(runner.graph());
  const BatchesLikeTheSet batches(data);
  Phase phase(progress, "reset batch norm", data.size(), "images");
  for (std::int64_t begin = 0; begin < data.size(); begin += batch_size) {
    stop_here_if_requested();
    const std::int64_t count = std::min(batch_size, data.size() - begin);
    if (count == 1 && begin > 0) break;
    runner.run({model.preprocessed(batches.batch(begin, count).to(device))}, &observer);
    if (observer.layers() == 0)
      return 0;  // one batch was enough to see that there is no batch norm
    phase.update(begin + count);
  }
  observer.store();
  return observer.layers();
}

}  // namespace weightsmith
