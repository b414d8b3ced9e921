#!/usr/bin/env python3
"""Tells copies of a network from independent ones on CIFAR-10, by gradient fields and by what costs less.

    scripts/ownership_study.py --cifar FOLDER [--seeds 3] [DIR]

FOLDER holds the binary version of CIFAR-10; without it the study is skipped with a message. One victim (a small
convolutional network at 16 x 16 pixels), copies of it (last layer or all layers trained on, pruned at three rates,
distilled by probabilities or decisions into the same or other architectures, trained on with images of low contrast or
negatives) and ten independent networks of five architectures; further copies and independent networks serve to select
reference samples and are not judged. All of them anew for every seed; networks that DIR (build/ownership) holds already
are not trained again.

Prints Markdown, mean ± standard deviation over seeds: the AUC of each group at 8, 32, 128 and 256 reference samples,
chosen at random or by a selection, beside cheaper distances; among networks of one architecture alone; by target; and
by the number of steps. About 12 minutes a seed on one core.
"""
import json
import pathlib
import statistics
import sys

from cifar_networks import ARCHITECTURES, Trainer, cifar, data, prune, write_images
from digit_networks import run, spread, study_arguments

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


def curve(group: dict) -> dict:
    return dict(zip(group["curve"]["samples"], group["curve"]["auc"]))


class Tables:
    """AUCs of one seed: a table a title, a row a group."""

    def __init__(self):
        self.columns, self.rows = {}, {}

    def add(self, title: str, column: str, values: dict) -> None:
        """`values`: {group: number or None}."""
        self.columns.setdefault(title, []).append(column)
        for group, value in values.items():
            self.rows.setdefault(title, {}).setdefault(group, []).append(value)


def study(judge: Judge) -> tuple[Tables, int]:
    """The tables of one seed's networks, and the number of steps that "auto" chose."""
    tables = Tables()
    targets = {target: judge(target, target=target) for target in ("label", "victim_prediction", "prediction")}
    first = "random samples, target label"
    groups = targets["label"]["groups"]
    for count in [*COUNTS, POOL]:
        tables.add(first, str(count), {group["name"]: curve(group)[count] for group in groups})
    for title, key in {"same architecture": "auc_same_architecture", "gradient x input": "auc_gradient_input",
                       "mistakes (AKH)": "auc_victim_mistakes", "output cosine": "auc_output_cosine",
                       "CKA": "auc_cka"}.items():
        tables.add(first, title, {group["name"]: group.get(key) for group in groups})
    for target, result in targets.items():
        for count in COUNTS:
            tables.add("by target", f"{target}, {count}",
                       {group["name"]: curve(group)[count] for group in result["groups"]})
    for rule in ("gap", "independents"):
        judge(rule, held_out=True)
        result = judge(f"by-{rule}", selection=str(judge.folder / f"judged-select-{rule}" / "selection.json"))
        for count in COUNTS:
            tables.add("disjoint selection", f"{rule}, {count}",
                       {group["name"]: curve(group)[count] for group in result["groups"]})
    for steps in (2, 4, 8, 16, 50, "auto"):
        result = judge(f"steps-{steps}", limit=128, steps=steps)
        tables.add("128 samples, by steps", str(steps), {group["name"]: group["auc"] for group in result["groups"]})
    return tables, result["steps"]


def cell(values: list) -> str:
    if None in values:
        return "-"
    return f"{statistics.fmean(values):.2f}" + (f" ± {spread(values):.2f}" if len(values) > 1 else "")


def row(title: str, seeds: list[list]) -> None:
    print(f"| {title} | " + " | ".join(cell(list(values)) for values in zip(*seeds)) + " |")


def show(found: list[Tables]) -> None:
    """Mean and deviation over seeds, and of the mean over groups."""
    for title, columns in found[0].columns.items():
        print(f"\n| AUC, {title} | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
        seeds = [tables.rows[title] for tables in found]
        for group in seeds[0]:
            row(TITLES[group], [seed[group] for seed in seeds])
        row("mean", [[None if None in column else statistics.fmean(column) for column in zip(*seed.values())]
                     for seed in seeds])


def main() -> None:
    parser = study_arguments(__doc__, "ownership")
    parser.add_argument("--cifar", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3, help="1 to so many (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    images, test = cifar(options.cifar, "train"), cifar(options.cifar, "test")
    if len(images) < 4 * IMAGES or len(test) < 1000 + POOL:
        raise SystemExit(f"{options.cifar}: {4 * IMAGES} training and {1000 + POOL} test images are needed")
    # The victim's own images, its thief's, and everybody else's are disjoint.
    sets = {"own": images[:IMAGES], "stolen": images[IMAGES:2 * IMAGES], "others": images[2 * IMAGES:4 * IMAGES],
            "test": test[:1000], "reference": test[1000:1000 + POOL]}
    for world, change in {"faded": lambda value: 80 + value // 3, "negative": lambda value: 255 - value}.items():
        lookup = bytes(map(change, range(256)))
        sets[world] = [(label, pixels.translate(lookup)) for label, pixels in sets["stolen"]]

    found, accuracy, chosen = [], {}, []
    for seed in range(1, options.seeds + 1):
        folder = options.folder.resolve() / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in sets.items():
            write_images(folder / f"{name}.safetensors", content)
        train = Trainer(options.tools, folder, options.epochs, folder / "test.safetensors")
        groups, archives = networks(train, folder, seed)
        for group, names in [("victim", ["victim"]), *groups.items()]:
            accuracy.setdefault(group, []).extend(train.accuracy[name] for name in names)
        tables, steps = study(Judge(options.tools, folder, groups, archives, seed))
        found.append(tables)
        chosen.append(steps)

    print("| accuracy, % | networks | mean | least | most |\n|---|---:|---:|---:|---:|")
    for group, values in accuracy.items():
        print(f"| {TITLES.get(group, group)} | {len(values)} | {statistics.fmean(values):.1f} | {min(values):.1f} "
              f"| {max(values):.1f} |")
    show(found)
    print(f"\nSteps that \"auto\" chose, a seed: {', '.join(map(str, chosen))}")


if __name__ == "__main__":
    main()
