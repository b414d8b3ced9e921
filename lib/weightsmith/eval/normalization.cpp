#include "weightsmith/eval/normalization.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "weightsmith/core/stop.h"
#include "weightsmith/eval/batch_norm_observer.h"
#include "weightsmith/model/graph_runner.h"

namespace weightsmith {

std::int64_t reset_batch_norm(ScriptModel& model, const Dataset& data, std::int64_t batch_size,
                              at::Device device, Progress& progress) {
  const at::NoGradGuard no_grad;
  model.train(false);
  const GraphRunner runner(model.module(), model.where());
  BatchNormObserver observer(runner.graph());
  Phase phase(progress, "reset batch norm", data.size(), "images");
  for (std::int64_t begin = 0; begin < data.size(); begin += batch_size) {
    stop_here_if_requested();
    const std::int64_t count = std::min(batch_size, data.size() - begin);
    if (count == 1 && begin > 0) break;
    runner.run({model.preprocessed(normalised_batch(data, begin, count).to(device))}, &observer);
    if (observer.layers() == 0)
      return 0;  // one batch was enough to see that there is no batch norm
    phase.update(begin + count);
  }
  observer.store();
  return observer.layers();
}

}  // namespace weightsmith
