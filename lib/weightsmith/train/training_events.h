#pragma once

#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "weightsmith/report/event_file.h"

namespace weightsmith {

/// A row of metrics.jsonl for TensorBoard, by its `steps`: `epoch`, `lr`, `train/loss` and the
/// scores as `test/accuracy`, of batch-norm modes as `test/per_head/accuracy`.
ScalarEvent event_of_row(const nlohmann::json& row, double wall_time);

/// Events of rows that lie one after the other, by their `seconds`, up to `now`.
std::vector<ScalarEvent> past_events(const std::vector<nlohmann::json>& rows, double now);

}  // namespace weightsmith
