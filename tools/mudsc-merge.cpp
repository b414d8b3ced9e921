// mudsc-merge: merge networks that were trained separately into one, without training.
//
//   mudsc-merge --config merge.json --set balance=0.7 --out runs/merged
//
// Xu, Yuan, Wang, Sun, Zhang, Xu: "Training-Free Pretrained Model Merging", CVPR 2024.

#include "common/tool.h"
#include "merge/commands.h"
#include "merge/merge_run.h"

namespace weightsmith {
namespace {

const ToolAbout kAbout{
    "mudsc-merge",
    "Merges networks of one architecture that were trained separately into one, without training.\n"
    "Hidden units have no common order, so units are matched first, by what they compute, by their "
    "weights, or by\n"
    "both (MuDSC: Xu et al., \"Training-Free Pretrained Model Merging\", CVPR 2024).",
    "mudsc-merge --config merge.json --set balance=0.7 --out runs/merged",
    {{"--no-verify", "verify=false", "Do not prove the unit groups before merging (key: verify)"}}};

nlohmann::json merge(const MergeConfig& config, Run& run) {
  MergeRun job(config, run);
  job.load_models();
  job.load_data();
  job.try_data();
  job.derive_unit_groups();
  job.try_taps();
  if (run.settings().dry_run) return job.plan();
  run.start();

  job.score_originals();
  job.collect_statistics();
  for (const VariantConfig& variant : config.variants()) {
    const MatchResult matched = job.match(variant);
    ScriptModel merged = job.apply(matched);
    job.renormalise(merged, matched);
    job.attach_heads(merged, matched);
    job.score(variant, matched, merged);
    job.save(variant, matched, merged);
    job.survey(variant, matched);
  }
  return job.summary();
}

}  // namespace
}  // namespace weightsmith

int main(int argc, char** argv) {
  using namespace weightsmith;
  return run_tool<MergeConfig>(argc, argv, kAbout, merge, {explain_command(), match_command()});
}
