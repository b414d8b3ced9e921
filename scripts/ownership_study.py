#!/usr/bin/env python3
"""Tells copies of a network from independent ones on CIFAR-10, by gradient fields and by what costs less.

    scripts/ownership_study.py --cifar FOLDER [--seed 1] [DIR]

FOLDER holds the binary version of CIFAR-10; without it the study is skipped with a message. One victim (a small
convolutional network at 16 x 16 pixels), copies of it (last layer or all layers trained on, pruned at three rates,
distilled by probabilities or decisions into the same or other architectures, trained on with images of low contrast or
negatives) and ten independent networks of five architectures; further copies and independent networks serve to select
reference samples and are not judged. Networks that DIR (build/ownership-SEED) holds already are not trained again.

Prints Markdown: the AUC of each group at 8, 32, 128 and 256 reference samples, chosen at random or by a selection,
beside cheaper distances; among networks of the victim's architecture alone; by target; and by the number of steps.
About 12 minutes on one core.
"""
import argparse
import json
import pathlib
import sys

from cifar_networks import ARCHITECTURES, Trainer, cifar, data, prune, write_images
from digit_networks import ROOT, run

COUNTS = [8, 32, 128, 256]
POOL = 512
IMAGES = 5000
TITLES = {"tune-last": "last layer trained on", "tune-all": "all layers trained on", "prune": "pruned, trained on",
          "soft-same": "soft labels, same", "soft-other": "soft labels, other", "hard-same": "hard labels, same",
          "hard-other": "hard labels, other", "faded": "moved to faded images", "negative": "moved to negatives"}
INDEPENDENT = ["convnet"] * 4 + ["resnet"] * 2 + ["vgg"] * 2 + ["vit", "mlp"]
HELD_OUT = ["convnet", "convnet", "resnet", "vgg", "mlp"]


def networks(train: Trainer, folder: pathlib.Path, seed: int) -> tuple[dict, dict]:
    """Trains everything: {group: [name]}, {name: archive}."""
    own, stolen, others = (data(folder / f"{name}.safetensors") for name in ("own", "stolen", "others"))
    groups = {name: [] for name in [*TITLES, "independent", "surrogates", "held out"]}
    archives = {}

    def add(group: str, name: str, *arguments, **more) -> None:
        archives[name] = train(name, *arguments, **more)
        if group:
            groups[group].append(name)

    add("", "victim", ARCHITECTURES["convnet"], own, seed)
    weights = folder / "victim" / "model.safetensors"
    copy = {**ARCHITECTURES["convnet"], "weights": str(weights)}
    few = max(2, train.epochs // 4)
    for i in range(3):
        at = 1000 * seed + 10 * i
        add("tune-last", f"tune-last-{i}", copy, stolen, at, few, 0.05, freeze=["conv*", "bn*"])
        add("tune-all", f"tune-all-{i}", copy, stolen, at + 1, few, 0.02)
        rate = (0.3, 0.5, 0.7)[i]
        pruned = folder / f"pruned-{rate}.safetensors"
        if not pruned.exists():
            prune(weights, pruned, rate)
        add("prune", f"prune-{rate}", {**copy, "weights": str(pruned)}, stolen, at + 2, 2, 0.01)
        other = ARCHITECTURES[("resnet", "vgg", "mlp")[i]]
        for kind in ("soft", "hard"):
            teacher = {"teacher": str(folder / "victim" / "model.pt"), "type": kind, "weight": 1}
            shift = 3 if kind == "soft" else 5
            add(f"{kind}-same", f"{kind}-same-{i}", ARCHITECTURES["convnet"], stolen, at + shift, distillation=teacher)
            add(f"{kind}-other", f"{kind}-other-{i}", other, stolen, at + shift + 1, distillation=teacher)
            if i < 2:
                name = f"surrogate-{kind}-{i}"
                add("surrogates", name, ARCHITECTURES["convnet"] if i == 0 else other, stolen, 1000 * seed + 500 + i,
                    distillation=teacher)
        for shift, world in enumerate(("faded", "negative")):
            add(world, f"{world}-{i}", copy, data(folder / f"{world}.safetensors"), at + 7 + shift, few, 0.05)
    for i, architecture in enumerate(INDEPENDENT):
        add("independent", f"independent-{i}-{architecture}", ARCHITECTURES[architecture],
            {**others, "limit": IMAGES, "subset_seed": i}, 1000 * seed + 100 + i)
    for i, architecture in enumerate(HELD_OUT):
        add("held out", f"held-out-{i}-{architecture}", ARCHITECTURES[architecture],
            {**others, "limit": IMAGES, "subset_seed": 50 + i}, 1000 * seed + 200 + i)
    return groups, archives


class Judge:
    """Runs of modelgif-dist over the same networks."""

    def __init__(self, tools: pathlib.Path, folder: pathlib.Path, groups: dict, archives: dict, seed: int):
        self.tools, self.folder, self.groups, self.archives, self.seed = tools, folder, groups, archives, seed

    def __call__(self, name: str, held_out: bool = False, limit: int = POOL, selection: str = "", **field) -> dict:
        derived = [*TITLES] if not held_out else ["surrogates"]
        independent = self.groups["held out" if held_out else "independent"]
        names = ["victim", *[model for group in derived for model in self.groups[group]], *independent]
        task = {"type": "ownership", "victim": "victim", "independents": independent, "counts": COUNTS,
                "groups": [{"name": group, "models": self.groups[group]} for group in derived]}
        if held_out:
            task = {"type": "select", "victim": "victim", "independents": independent,
                    "surrogates": self.groups["surrogates"], "rule": name}
        reference = {"data": data(self.folder / "reference.safetensors", limit=limit)}
        if selection:
            reference["selection"] = selection
        config = {
            "models": [{"name": model, "script": str(self.archives[model])} for model in names],
            "reference": reference, "field": {"steps": 8, "target": "label", "store": "float16", **field},
            "cache": str(self.folder / "fields"), "threads": 1, "seed": self.seed, "task": task}
        print(f"judge: {name}", file=sys.stderr)
        out = self.folder / f"judged-{'select-' if held_out else ''}{name}"
        path = self.folder / f"{out.name}.json"
        path.write_text(json.dumps(config, indent=1))
        return run(self.tools, "modelgif-dist", "--config", path, "--out", out)


def cell(value) -> str:
    return "-" if value is None else f"{value:.2f}"


def row(title: str, values) -> None:
    print(f"| {title} | " + " | ".join(map(cell, values)) + " |")


def table(title: str, columns: list[str], results: dict) -> None:
    """`results`: {group: values}; a row a group and their mean."""
    print(f"\n| {title} | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for group, values in results.items():
        row(TITLES[group], values)
    row("mean", [sum(column) / len(column) if None not in column else None for column in zip(*results.values())])


def curve(group: dict) -> dict:
    return dict(zip(group["curve"]["samples"], group["curve"]["auc"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--cifar", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--tools", type=pathlib.Path, default=ROOT / "build" / "release" / "tools",
                        help="folder of the executables")
    options = parser.parse_args()
    images, test = cifar(options.cifar, "train"), cifar(options.cifar, "test")
    if len(images) < 4 * IMAGES or len(test) < 1000 + POOL:
        raise SystemExit(f"{options.cifar}: {4 * IMAGES} training and {1000 + POOL} test images are needed")
    folder = (options.folder or ROOT / "build" / f"ownership-{options.seed}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # The victim's own images, its thief's, and everybody else's are disjoint.
    write_images(folder / "own.safetensors", images[:IMAGES])
    write_images(folder / "stolen.safetensors", images[IMAGES:2 * IMAGES])
    write_images(folder / "others.safetensors", images[2 * IMAGES:4 * IMAGES])
    for world, change in {"faded": lambda value: 80 + value // 3, "negative": lambda value: 255 - value}.items():
        lookup = bytes(map(change, range(256)))
        write_images(folder / f"{world}.safetensors",
                     [(label, pixels.translate(lookup)) for label, pixels in images[IMAGES:2 * IMAGES]])
    write_images(folder / "test.safetensors", test[:1000])
    write_images(folder / "reference.safetensors", test[1000:1000 + POOL])

    train = Trainer(options.tools, folder, options.epochs, folder / "test.safetensors")
    groups, archives = networks(train, folder, options.seed)
    judge = Judge(options.tools, folder, groups, archives, options.seed)

    print("| accuracy, % | networks | least | most |\n|---|---:|---:|---:|")
    for group, names in [("victim", ["victim"]), *groups.items()]:
        values = [train.accuracy[name] for name in names]
        print(f"| {TITLES.get(group, group)} | {len(values)} | {min(values):.1f} | {max(values):.1f} |")

    targets = {target: judge(target, target=target) for target in ("label", "victim_prediction", "prediction")}
    by_group = {group["name"]: group for group in targets["label"]["groups"]}
    table("AUC, random samples, target label", [*map(str, COUNTS), "512", "512, same architecture"],
          {name: [*curve(group).values(), group["auc_same_architecture"]] for name, group in by_group.items()})
    cheap = {"gradient x input": "auc_gradient_input", "mistakes": "auc_victim_mistakes",
             "output cosine": "auc_output_cosine", "CKA": "auc_cka"}
    table("AUC, 512 samples", ["field", *cheap],
          {name: [group["auc"], *[group.get(key) for key in cheap.values()]] for name, group in by_group.items()})
    columns, found = [], {name: [] for name in by_group}
    for target, result in targets.items():
        columns += [f"{target}, {count}" for count in COUNTS]
        for group in result["groups"]:
            found[group["name"]] += [curve(group)[count] for count in COUNTS]
    table("AUC by target", columns, found)

    columns, found = [], {name: [] for name in by_group}
    for rule in ("gap", "independents"):
        judge(rule, held_out=True)
        result = judge(f"by-{rule}", selection=str(folder / f"judged-select-{rule}" / "selection.json"))
        columns += [f"{rule}, {count}" for count in COUNTS]
        for group in result["groups"]:
            found[group["name"]] += [curve(group)[count] for count in COUNTS]
    table("AUC, disjoint selection", columns, found)

    columns, found = [], {name: [] for name in by_group}
    for steps in (2, 4, 8, 16, 50, "auto"):
        result = judge(f"steps-{steps}", limit=128, steps=steps)
        columns.append(f"{steps}" if steps != "auto" else f"auto: {result['steps']}")
        for group in result["groups"]:
            found[group["name"]].append(group["auc"])
    table("AUC, 128 samples, by steps", columns, found)


if __name__ == "__main__":
    main()
