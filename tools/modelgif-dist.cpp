// modelgif-dist: how far apart networks are in function, by their gradient fields.
//
//   modelgif-dist --config distances.json --out runs/distances
//
// Song, Zhang, Gao, Shen, Li: "ModelGiF: Gradient Fields for Model Functional Distance", ICCV 2023.

#include "common/tool.h"
#include "gif/gif_commands.h"
#include "gif/gif_run.h"

namespace weightsmith {
namespace {

const ToolAbout kAbout{
    "modelgif-dist",
    "Measures how far apart networks are in function, whatever their architectures: by the "
    "gradients of their outputs\n"
    "along paths to common reference inputs (ModelGiF: Song et al., \"ModelGiF: Gradient Fields "
    "for Model Functional\n"
    "Distance\", ICCV 2023).",
    "modelgif-dist --config distances.json --out runs/distances"};

nlohmann::json measure(const GifConfig& config, Run& run) {
  GifRun job(config, run);
  job.load_reference();
  job.try_out();
  if (run.settings().dry_run) return job.plan();
  run.start();

  job.compute_fields();
  return job.run_task();
}

}  // namespace
}  // namespace weightsmith

int main(int argc, char** argv) {
  using namespace weightsmith;
  return run_tool<GifConfig>(argc, argv, kAbout, measure, {field_command(), distance_command()});
}
