#!/usr/bin/env python3
"""Merges the encoders of three networks of the shipped digits that do different things, and keeps their decoders.

    scripts/digit_tasks.py [--runs 5] [--cuts bn4,bn3,bn2,bn1] [DIR]

A small form of the Taskonomy setting of MuDSC: of an image one network tells the class, one gives the image back and one
its edges. Trains three a run (configs/lookaround-train/tasks.json, seeds 1 to 3, 4 to 6, ...) unless DIR (build/tasks)
holds them already, merges them in the variants of configs/mudsc-merge/tasks.json up to every submodule named, and prints
as Markdown the accuracy and the share of the targets' variance that is explained: means ± deviations over runs. About
30 seconds a run.
"""
import pathlib
import statistics
import sys

from digit_networks import CONFIGS, run, spread, study_arguments

TASKS = {
    "class": ['objective={"type": "cross_entropy"}', "model.options.outputs=10"],
    "image": ['objective.target="image"'],
    "edges": ['objective.target="edges"'],
}


def trained(tools, folder, first_seed):
    models = []
    for offset, (name, settings) in enumerate(TASKS.items()):
        models.append(folder / f"{name}-{first_seed}" / "model.pt")
        if not models[-1].exists():
            arguments = [part for setting in settings for part in ("--set", setting)]
            run(tools, "lookaround-train", "--config", CONFIGS / "lookaround-train" / "tasks.json",
                "--seed", first_seed + offset, "--out", models[-1].parent, *arguments)
    return models


def scores(tools, models, out, cut):
    """{network: {task: percent}}; the originals together are one row."""
    arguments = ["--config", CONFIGS / "mudsc-merge" / "tasks.json", "--out", out, "--set", f"partial.until={cut}"]
    for i, model in enumerate(models):
        arguments += ["--set", f"models.{i}.script={model}"]
    summary = run(tools, "mudsc-merge", *arguments)
    rows = {entry["name"]: entry["scores"] for entry in summary["variants"]}
    rows["the three networks"] = next(e["scores"] for e in summary["originals"] if e["name"] == "ensemble")
    return {name: {task: 100 * row[task]["accuracy" if task == "class" else "explained"] for task in TASKS}
            for name, row in rows.items()}


def main():
    parser = study_arguments(__doc__, "tasks")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cuts", default="bn4,bn3,bn2,bn1")
    options = parser.parse_args()
    cuts = options.cuts.split(",")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    found = {cut: [] for cut in cuts}
    for number in range(options.runs):
        models = trained(options.tools, folder, 3 * number + 1)
        for cut in cuts:
            print(f"run {number + 1}: {cut}", file=sys.stderr)
            found[cut].append(scores(options.tools, models, folder / "merged", cut))

    for task, title in (("class", "accuracy, %"), ("image", "image: variance explained, %"),
                        ("edges", "edges: variance explained, %")):
        print(f"\n| {title} | " + " | ".join(f"until `{c}`" for c in cuts) + " |")
        print("|---|" + "---:|" * len(cuts))
        for name in found[cuts[0]][0]:
            columns = [[row[name][task] for row in found[cut]] for cut in cuts]
            print(f"| {name} | " + " | ".join(f"{statistics.fmean(c):.1f} ± {spread(c):.1f}" for c in columns) + " |")


if __name__ == "__main__":
    main()
