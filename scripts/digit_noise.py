#!/usr/bin/env python3
"""Compares SGD with Lookaround where 40 % of the labels of the shipped digits are drawn anew.

    scripts/digit_noise.py [--seeds 8] [--first 12] [--stronger] [--check] [DIR]

Trains the networks of configs/lookaround-train/label-noise.json in DIR (build/noise), SWA and Lookaround with other k
beside them, and prints test accuracy, mean and standard deviation over seeds, and differences to SGD paired by seed as
Markdown. With --check only the methods of the configuration are trained, and the exit code is 1 unless all runs took as
many gradients and Lookaround holds its margin. About 10 seconds a network; two are trained at a time.
"""
import concurrent.futures
import json
import pathlib
import statistics
import sys

from digit_networks import CONFIGS, differences, run, spread, study_arguments

METHODS = ["sgd", "swa", *({"type": "lookaround", "k": k, "name": f"lookaround-{k}"} for k in (5, 48, 160))]
STRONGER = [[{"name": "random_crop", "padding": 2}], [{"name": "rotation", "degrees": 20}],
            [{"name": "affine", "degrees": 15, "shift": 0.2, "scale": 0.25}]]
MARGIN = 0.5  # points that --check demands of the configuration's Lookaround


def main() -> int:
    parser = study_arguments(__doc__, "noise")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=12, help="seed; k was chosen with those before 12")
    parser.add_argument("--stronger", action="store_true", help="with stronger augmentations")
    parser.add_argument("--check", action="store_true", help="demand equal compute and the margin")
    options = parser.parse_args()

    def train(seed: int) -> dict:
        out = options.folder.resolve() / f"seed-{seed}"
        methods = [] if options.check else ["--set", f"compare={json.dumps(METHODS)}"]
        if options.stronger:
            methods += ["--set", f"augmentations={json.dumps(STRONGER)}"]
        summary = run(options.tools, "lookaround-train", "--config", CONFIGS / "lookaround-train" / "label-noise.json",
                      "--set", f"seeds=[{seed}]", *methods, "--out", out)
        found = {}
        for method in summary["methods"]:
            name = method["name"]
            steps = json.loads((out / name / f"seed-{seed}" / "results.json").read_text())["result"]["steps"]
            found[name] = (100 * method["accuracies"][0], steps)
        print(f"seed {seed}", file=sys.stderr)
        return found

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(train, range(options.first, options.first + options.seeds)))
    accuracy = {name: [seed[name][0] for seed in found] for name in found[0]}
    gradients = {steps for seed in found for _, steps in seed.values()}

    print("| method | accuracy, % | deviation | against SGD, points | deviation | seeds above 0 |\n"
          "|---|---:|---:|---:|---:|---:|")
    for name, values in accuracy.items():
        gains = differences(values, accuracy["sgd"])
        against = (f"{statistics.fmean(gains):+.1f} | {spread(gains):.1f} | {sum(g > 0 for g in gains)} of {len(gains)}"
                   if name != "sgd" else "| |")
        print(f"| {name} | {statistics.fmean(values):.1f} | {spread(values):.1f} | {against} |")
    print(f"\n{' or '.join(map(str, sorted(gradients)))} gradients a run.")

    gain = statistics.fmean(differences(accuracy["lookaround-160"], accuracy["sgd"]))
    failed = len(gradients) > 1 or gain < MARGIN
    if options.check and failed:
        print("**missed**: as many gradients in every run, and "
              f"at least {MARGIN:+.1f} points by Lookaround", file=sys.stderr)
    return 1 if options.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())
