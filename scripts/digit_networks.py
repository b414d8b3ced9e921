"""Pairs of networks of the shipped digits, trained and merged as scripts/demo.sh does, for the studies beside this."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
DIGITS = ROOT / "lib" / "weightsmith" / "data" / "digits"
WHOLE = "all layers"  # of a merge that is not partial
TRAIN = 1257  # the first so many are the training part
HALVES = {"low": "[0,1,2,3,4]", "high": "[5,6,7,8,9]"}


def study_arguments(description: str, folder: str) -> argparse.ArgumentParser:
    """A parser with what every study takes: DIR, by default `folder` below build, and --tools."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "build" / folder, metavar="DIR")
    parser.add_argument("--tools", type=pathlib.Path, default=ROOT / "build" / "release" / "tools",
                        help="folder of the executables")
    return parser


def run(tools: pathlib.Path, tool: str, *arguments, resume: bool = False) -> dict:
    """Runs a tool and returns its summary; ends the study with the tool's message where it fails. With `resume` it goes
    on from what its output folder holds, else it begins anew."""
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    begin = "--resume" if resume else "--overwrite"
    done = subprocess.run([tools / tool, begin, "--quiet", *map(str, arguments)], env=environment,
                          stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{tool} ended with {done.returncode}")
    return json.loads(done.stdout)


def digits(split: str) -> list[tuple[int, bytes]]:
    """(label, 64 bytes) of each shipped image of "train" or "test"."""
    pixels = (DIGITS / "images-idx3-ubyte").read_bytes()[16:]
    labels = (DIGITS / "labels-idx1-ubyte").read_bytes()[8:]
    images = [(label, pixels[64 * i:64 * i + 64]) for i, label in enumerate(labels)]
    return images[:TRAIN] if split == "train" else images[TRAIN:]


def trained(tools: pathlib.Path, folder: pathlib.Path, seed: int) -> list[pathlib.Path]:
    """The archives of a pair: digits 0-4 with this seed, 5-9 with the next one. Found in the folder, or trained."""
    models = []
    for offset, (name, classes) in enumerate(HALVES.items()):
        models.append(folder / f"{name}-{seed}" / "model.pt")
        if not models[-1].exists():
            run(tools, "lookaround-train", "--config", CONFIGS / "lookaround-train" / "demo.json",
                "--seed", seed + offset, "--set", f"data.train.classes={classes}",
                "--set", f"data.test.classes={classes}", "--out", models[-1].parent)
    return models


def scores_of(summary: dict) -> dict:
    """{network: {set: accuracy in %}} of a comparison of mudsc-merge, the ensemble among the networks."""
    rows = {entry["name"]: entry["scores"] for entry in summary["variants"]}
    rows["ensemble"] = next(entry["scores"] for entry in summary["originals"] if entry["name"] == "ensemble")
    return {name: {key: 100 * score["accuracy"] for key, score in scores.items() if "accuracy" in score}
            for name, scores in rows.items()}


def accuracies(tools: pathlib.Path, models: list[pathlib.Path], out: pathlib.Path, *settings) -> dict:
    """Merges a pair in the variants of the demo; what scores_of() says."""
    arguments = ["--config", CONFIGS / "mudsc-merge" / "demo.json", "--out", out]
    for i, (name, model) in enumerate(zip(HALVES, models)):
        arguments += ["--set", f"models.{i}.name={name}", "--set", f"models.{i}.script={model}"]
    for setting in settings:
        arguments += ["--set", setting]
    return scores_of(run(tools, "mudsc-merge", *arguments))


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def differences(values: list[float], others: list[float]) -> list[float]:
    """Paired."""
    return [value - other for value, other in zip(values, others)]


def print_by_cut(found: dict) -> None:
    """Prints joint accuracy and task average by the place where merges were cut, as Markdown. `found`: {cut: one entry
    a pair, as scores_of() gives it}, with WHOLE among the cuts, which the others are compared with, paired."""
    def cell(values: list[float], reference: list[float]) -> str:
        mean = statistics.fmean(values)
        if reference is values:
            return f"{mean:.1f}"
        gains = differences(values, reference)
        return f"{mean:.1f} ({statistics.fmean(gains):+.1f} ± {spread(gains):.1f})"

    for key, title in (("all ten", "joint accuracy, %"), ("task_average", "task average, %")):
        print(f"\n| {title} | " + " | ".join(c if c == WHOLE else f"until `{c}`" for c in found) + " |")
        print("|---|" + "---:|" * len(found))
        for name in found[WHOLE][0]:
            columns = {cut: [pair[name][key] for pair in pairs] for cut, pairs in found.items()}
            print(f"| {name} | " + " | ".join(cell(values, columns[WHOLE]) for values in columns.values()) + " |")
