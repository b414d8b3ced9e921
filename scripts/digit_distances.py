#!/usr/bin/env python3
"""ModelGiF's three studies, small, on networks of the shipped digits.

    scripts/digit_distances.py [--seeds 12] [DIR]
    scripts/digit_distances.py --check [DIR]

Each study is repeated over seeds with networks of its own, which DIR (build/digit-distances) keeps:

- ownership: a victim, copies of it (trained on, pruned, distilled) and independent networks of three architectures;
  AUC of the distances to the victim, copies against independent ones, beside cheaper distances;
- unlearning: distances, at the forgotten digit's training images, to a network that knows it, of networks trained on
  with that digit's labels redrawn (approximate) or without it, of other seeds (unrelated) and of ones trained without
  the digit (retrained);
- relatedness: ten networks, each of five digits in a row (0-4, 1-5, ..., 9-3), the affinity of two the number of
  digits they share; Spearman's rank correlation of affinities with distances, mean over columns.

Prints mean, standard deviation, least and most over seeds as Markdown. With --check few seeds are run, and the exit
code is 1 unless the means hold what docs/reproducing.md says of them. About 40 seconds a seed on one core, a minute
and a half with --check on two.
"""
import concurrent.futures
import json
import os
import pathlib
import random
import statistics
import sys

from cifar_networks import prune, write_images
from digit_networks import digits, run, spread, study_arguments

ARCHITECTURES = {
    "convnet": {"builtin": "convnet", "options": {"width": 8, "channels": 1}},
    "resnet": {"builtin": "resnet20", "options": {"depth": 8, "width": 0.5, "channels": 1}},
    "mlp": {"builtin": "mlp", "options": {"hidden": [64, 32]}},
}
IMAGES = 600  # of the 1,257, drawn anew for each role
EPOCHS = 12
INDEPENDENT = ["convnet"] * 3 + ["resnet"] * 2 + ["mlp"]
FORGOTTEN = 9
CHECKED_SEEDS = {"ownership": 1, "unlearning": 12, "relatedness": 1}
# What --check demands of a mean: at least the number, at most where it is negative.
DEMANDED = {
    "tune-last": 0.95, "tune-all": 0.95, "prune": 0.95, "soft-same": 0.8, "soft-other, same architecture": 0.8,
    "unrelated - approximate": 0.1, "retrained - unrelated": 0.02, "retrained - approximate": 0.2, "retrained - without": 0.25,
    "field": -0.6}
CHEAPER = {"gradient x input": "gradient_input", "mistakes (AKH)": "victim_mistakes",
           "output cosine": "output_cosine", "CKA": "cka"}
COPIES = 3  # of every image, each with labels drawn anew


class Networks:
    """Trains networks of one seed into a folder, each once."""

    def __init__(self, tools: pathlib.Path, folder: pathlib.Path, seed: int):
        self.tools, self.folder, self.seed = tools, folder, seed
        self.archives = {}
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, name: str, model: dict, data: dict, seed: int, epochs: int = EPOCHS, lr: float = 0.1,
              **more) -> None:
        out = self.folder / name
        self.archives[name] = out / "model.pt"
        if self.archives[name].exists():
            return
        config = {"model": model, "data": {"train": {"format": "digits", "split": "train", **data}},
                  "augmentations": [["random_crop"]], "method": {"type": "sgd"}, "optimizer": {"lr": lr},
                  "schedule": {"warmup_epochs": 1 if epochs > 3 else 0}, "epochs": epochs, "batch_size": 64,
                  "seed": 1000 * self.seed + seed, "threads": 1, **more}
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config, indent=1))
        run(self.tools, "lookaround-train", "--config", path, "--out", out)

    def judge(self, name: str, names: list[str], data: dict, task: dict, **field) -> dict:
        config = {
            "models": [{"name": model, "script": str(self.archives[model])} for model in names],
            "reference": {"data": {"format": "digits", **data}}, "field": {"steps": 8, "target": "label", **field},
            "bootstrap": 0, "threads": 1, "seed": self.seed, "cache": str(self.folder / "fields"), "task": task}
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config, indent=1))
        return run(self.tools, "modelgif-dist", "--config", path, "--out", self.folder / name)


def ownership(networks: Networks) -> dict:
    seed = networks.seed
    convnet = ARCHITECTURES["convnet"]

    def images(role: int) -> dict:
        return {"limit": IMAGES, "subset_seed": 100 * seed + role}

    networks.train("victim", convnet, images(0), 0)
    weights = networks.folder / "victim" / "model.safetensors"
    copy = {**convnet, "weights": str(weights)}
    groups = {group: [] for group in ("tune-last", "tune-all", "prune", "soft-same", "hard-same", "soft-other")}
    for i in range(2):
        pruned = networks.folder / f"pruned-{i}.safetensors"
        if not pruned.exists():
            prune(weights, pruned, (0.3, 0.6)[i])
        teacher = {"teacher": str(networks.archives["victim"]), "weight": 1}
        for group, arguments in {
                "tune-last": (copy, images(1), 10 + i, 4, 0.05, {"freeze": ["conv*", "bn*"]}),
                "tune-all": (copy, images(1), 20 + i, 4, 0.02, {}),
                "prune": ({**convnet, "weights": str(pruned)}, images(1), 30 + i, 2, 0.01, {}),
                "soft-same": (convnet, images(1), 40 + i, EPOCHS, 0.1, {"distillation": {**teacher, "type": "soft"}}),
                "hard-same": (convnet, images(1), 50 + i, EPOCHS, 0.1, {"distillation": {**teacher, "type": "hard"}}),
                "soft-other": (ARCHITECTURES["resnet"], images(1), 60 + i, EPOCHS, 0.1,
                               {"distillation": {**teacher, "type": "soft"}})}.items():
            *most, more = arguments
            name = f"{group}-{i}"
            groups[group].append(name)
            networks.train(name, *most, **more)
    others = []
    for i, architecture in enumerate(INDEPENDENT):
        others.append(f"independent-{i}")
        networks.train(others[-1], ARCHITECTURES[architecture], images(2 + i), 70 + i)
    names = ["victim", *[model for group in groups.values() for model in group], *others]
    summary = networks.judge("ownership", names, {"split": "test", "limit": 64}, {
        "type": "ownership", "victim": "victim", "independents": others, "counts": [8, 32],
        "groups": [{"name": group, "models": models} for group, models in groups.items()]})
    found = {}
    for group in summary["groups"]:
        name = group["name"]
        found[name] = group["auc"]
        found[f"{name}, 8 samples"] = group["curve"]["auc"][0]
        if group["auc_same_architecture"] is not None:
            found[f"{name}, same architecture"] = group["auc_same_architecture"]
        for title, key in CHEAPER.items():
            if group[f"auc_{key}"] is not None:
                found[f"{name}, {title}"] = group[f"auc_{key}"]
    return found


def unlearning(networks: Networks) -> dict:
    convnet = ARCHITECTURES["convnet"]
    rest = {"classes": [digit for digit in range(10) if digit != FORGOTTEN]}
    networks.train("reference", convnet, {}, 200)
    copy = {**convnet, "weights": str(networks.folder / "reference" / "model.safetensors")}
    draw = random.Random(networks.seed)
    redrawn = networks.folder / "redrawn.safetensors"
    write_images(redrawn, [(draw.choice(rest["classes"]) if label == FORGOTTEN else label, pixels)
                           for _ in range(COPIES) for label, pixels in digits("train")], (1, 8, 8))
    kinds = {"approximate": (copy, {"format": "tensors", "path": str(redrawn), "split": "all"}, 201, EPOCHS // 3, 0.05),
             "unrelated": (convnet, {}, 202),
             "retrained": (convnet, rest, 203),
             "without": (copy, rest, 204, EPOCHS, 0.05)}
    for kind, arguments in kinds.items():
        networks.train(kind, *arguments)
    summary = networks.judge("unlearning", ["reference", *kinds], {"split": "train", "classes": [FORGOTTEN]}, {
        "type": "unlearning", "reference": ["reference"],
        "sequences": [{"name": kind, "models": [kind]} for kind in kinds]})
    found = {sequence["name"]: sequence["distance"][0] for sequence in summary["sequences"]}
    for sequence in summary["sequences"]:
        for title, key in CHEAPER.items():
            if sequence[key][0] is not None:
                found[f"{sequence['name']}, {title}"] = sequence[key][0]
    for far, near in (("unrelated", "approximate"), ("retrained", "unrelated"), ("retrained", "approximate"),
                      ("retrained", "without")):
        found[f"{far} - {near}"] = found[far] - found[near]
    return found


def relatedness(networks: Networks) -> dict:
    tasks = [sorted((first + i) % 10 for i in range(5)) for first in range(10)]
    names = []
    for first, task in enumerate(tasks):
        names.append(f"digits-{first}")
        networks.train(names[-1], ARCHITECTURES["convnet"], {"classes": task}, 300 + first)
    affinity = [[len(set(a) & set(b)) for b in tasks] for a in tasks]
    summary = networks.judge("relatedness", names, {"split": "test", "limit": 128},
                             {"type": "relatedness", "affinity": affinity}, target="prediction")
    found = {"field": summary["spearman_mean"]}
    for title, key in CHEAPER.items():
        if summary.get(f"spearman_mean_{key}") is not None:
            found[title] = summary[f"spearman_mean_{key}"]
    return found


STUDIES = {"ownership": ownership, "unlearning": unlearning, "relatedness": relatedness}


def main() -> int:
    parser = study_arguments(__doc__, "digit-distances")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--check", action="store_true", help="demand the margins, of few seeds")
    options = parser.parse_args()
    folder = options.folder.resolve()

    def one(study: str, seed: int) -> dict:
        print(f"{study}, seed {seed}", file=sys.stderr)
        return STUDIES[study](Networks(options.tools, folder / f"{study}-{seed}", seed))

    seeds = CHECKED_SEEDS if options.check else dict.fromkeys(STUDIES, options.seeds)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {study: [pool.submit(one, study, seed) for seed in range(seeds[study])] for study in STUDIES}
        found = {study: [job.result() for job in each] for study, each in jobs.items()}
    failed = False
    for study, results in found.items():
        print(f"\n| {study}, seeds: {len(results)} | mean | deviation | least | most | demanded |\n"
              "|---|---:|---:|---:|---:|---:|")
        for key in results[0]:
            values = [result[key] for result in results if key in result]
            mean = statistics.fmean(values)
            demanded = ""
            if key in DEMANDED:
                least = DEMANDED[key]
                missed = not (mean <= least if least < 0 else mean >= least)
                failed |= missed
                demanded = f"{'at most' if least < 0 else 'at least'} {least:g}{' **missed**' * missed}"
            print(f"| {key} | {mean:.3f} | {spread(values):.3f} | {min(values):.3f} | {max(values):.3f} | {demanded} |")
    return 1 if options.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())
