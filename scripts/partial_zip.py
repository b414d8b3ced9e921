#!/usr/bin/env python3
"""Measures how accuracy depends on where a partial merge is cut, over pairs of networks of the shipped digits.

    scripts/partial_zip.py [--pairs 6] [--cuts bn4,bn3,bn2,bn1] [DIR]

Trains the pairs of scripts/demo.sh (digits 0-4 and 5-9, seeds 1 and 2, 3 and 4, ...) unless DIR (build/partial) holds
them already, merges each in the variants of configs/mudsc-merge/demo.json, whole and cut behind every submodule named,
and prints means and paired differences to the whole merge in points as Markdown: of the joint accuracy, where all
heads answer, and of the task average, where each set is answered by its own head. About 20 seconds a pair.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOLS = ROOT / "build" / "release" / "tools"
CONFIGS = ROOT / "configs"
HALVES = {"low": "[0,1,2,3,4]", "high": "[5,6,7,8,9]"}
WHOLE = "all layers"


def run(tool, *arguments):
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    done = subprocess.run([TOOLS / tool, "--overwrite", "--quiet", *map(str, arguments)], env=environment,
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def trained(folder, seed):
    models = []
    for offset, (name, classes) in enumerate(HALVES.items()):
        models.append(folder / f"{name}-{seed}" / "model.pt")
        if not models[-1].exists():
            run("lookaround-train", "--config", CONFIGS / "lookaround-train" / "demo.json", "--seed", seed + offset,
                "--set", f"data.train.classes={classes}", "--set", f"data.test.classes={classes}",
                "--out", models[-1].parent)
    return models


def accuracies(models, cut, out):
    arguments = ["--config", CONFIGS / "mudsc-merge" / "demo.json", "--out", out]
    for i, (name, model) in enumerate(zip(HALVES, models)):
        arguments += ["--set", f"models.{i}.name={name}", "--set", f"models.{i}.script={model}"]
    if cut != WHOLE:
        arguments += ["--set", f"partial.until={cut}", "--set", "evaluation.sets.1.head=low",
                      "--set", "evaluation.sets.2.head=high"]
    summary = run("mudsc-merge", *arguments)
    rows = {entry["name"]: entry["scores"] for entry in summary["variants"]}
    rows["ensemble"] = next(entry["scores"] for entry in summary["originals"] if entry["name"] == "ensemble")
    return {name: {key: 100 * scores[key]["accuracy"] for key in ("all ten", "task_average")}
            for name, scores in rows.items()}


def cell(values, reference):
    mean = statistics.fmean(values)
    if reference is values:
        return f"{mean:.1f}"
    gains = [v - r for v, r in zip(values, reference)]
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    return f"{mean:.1f} ({statistics.fmean(gains):+.1f} ± {spread:.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "build" / "partial", metavar="DIR")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--cuts", default="bn4,bn3,bn2,bn1")
    options = parser.parse_args()
    cuts = [WHOLE, *options.cuts.split(",")]
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    found = {cut: [] for cut in cuts}
    for pair in range(options.pairs):
        models = trained(folder, 2 * pair + 1)
        for cut in cuts:
            print(f"pair {pair + 1}: {cut}", file=sys.stderr)
            found[cut].append(accuracies(models, cut, folder / "merged"))

    for key, title in (("all ten", "joint accuracy, %"), ("task_average", "task average, %")):
        print(f"\n| {title} | " + " | ".join(c if c == WHOLE else f"until `{c}`" for c in cuts) + " |")
        print("|---|" + "---:|" * len(cuts))
        for name in found[WHOLE][0]:
            columns = {cut: [pair[name][key] for pair in found[cut]] for cut in cuts}
            print(f"| {name} | " + " | ".join(cell(columns[cut], columns[WHOLE]) for cut in cuts) + " |")


if __name__ == "__main__":
    main()
