#!/usr/bin/env python3
"""Compares Lookaround with SGD, SWA and Lookahead on a part of CIFAR-10 at equal compute.

    scripts/lookaround_study.py [DIR] --cifar FOLDER [--ablation] [--seeds 3] [--images 4000] [--epochs 20]

FOLDER holds the binary version of CIFAR-10; without it the study is skipped with a message. Every network is a narrow
ResNet at 16 x 16 pixels that learns from three streams of the same samples (mirrored; AutoAugment; RandAugment, each
after a random crop), under a cosine and under a constant rate. Lookaround gives each head a stream of its own, the
others step through all of them in turn; an epoch shows every sample once in every stream.

Printed as Markdown: test accuracy, mean and deviation over the seeds, differences to SGD and to SWA paired by seed, and
accuracy of the ensemble of all seeds. "Recomputed": with batch-norm statistics of the network that is scored (as SWA
always has), so that what remains is a matter of weights; there the difference is to SGD with such statistics. "k = N (an
epoch)": averaged once an epoch.

With --ablation: d = 1, 2, 3, 5 heads, each with the first d of five streams, and k = 1, 5, 10 between averages, beside
SGD on the same streams. All take as many gradients as d = 3 does in --epochs, a multiple of ten.

A study that was stopped goes on where it was; other settings want another DIR (build/lookaround-study). Two networks
are trained at a time, on a thread each.
"""
import concurrent.futures
import json
import pathlib
import statistics
import sys

from cifar_networks import ARCHITECTURES, cifar, data, write_images
from digit_networks import differences, run, spread, study_arguments

STREAMS = ["horizontal_flip", {"name": "autoaugment", "policy": "cifar10"}, "randaugment",
           {"name": "rotation", "degrees": 15}, "trivialaugment"]
SCHEDULES = ["cosine", "constant"]
HEADS = [1, 2, 3, 5]
STEPS = [1, 5, 10]


def methods(batches: int) -> list[dict]:
    """Of the main study; `batches`: of an epoch."""
    def lookaround(k: int, title: str, **more) -> dict:
        return {"type": "lookaround", "k": k, "name": title, **more}
    return [
        {"type": "sgd", "name": "sgd"},
        {"type": "swa", "name": "swa"},
        {"type": "lookahead", "name": "lookahead"},
        lookaround(5, "lookaround-5"),
        lookaround(batches, "lookaround-epoch"),
        # An average that forgets everything at once is SGD, but for its batch-norm statistics.
        {"type": "ema", "decay": 0, "name": "sgd-recomputed"},
        lookaround(5, "lookaround-5-recomputed", batch_norm="recompute"),
        lookaround(batches, "lookaround-epoch-recomputed", batch_norm="recompute")]


class Study:
    """Trains and compares in a folder; what is finished there is taken as it is."""

    def __init__(self, options):
        self.options = options
        self.folder = options.folder.resolve()
        images = {split: cifar(options.cifar, split)[:count]
                  for split, count in (("train", options.images), ("test", options.test_images))}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = {split: self.folder / f"{split}.safetensors" for split in images}
        for split, path in self.files.items():
            write_images(path, images[split])

    def compare(self, name: str, heads: int, schedule: str, compared: list[dict]) -> dict:
        """{method: its entry of the comparison}, with `steps`, the gradients of a run."""
        options = self.options
        network = json.loads(json.dumps(ARCHITECTURES[options.network]))
        if options.network == "resnet":
            network["options"].update(width=options.width, depth=options.depth)
        config = {
            "model": network,
            "data": {**{split: data(path, resize=options.pixels) for split, path in self.files.items()},
                     "label_noise": options.label_noise},
            "augmentations": [[{"name": "random_crop", "padding": options.pixels // 8}, stream]
                              for stream in STREAMS[:heads]],
            "method": {"heads": heads}, "optimizer": {"lr": options.lr},
            # As many images of warm-up whatever the number of heads.
            "schedule": {"type": schedule, "warmup_epochs": max(1, round(3 / heads))},
            "epochs": 3 * options.epochs // heads, "batch_size": options.batch_size,
            "compare": compared, "seeds": list(range(options.seeds)), "threads": 1}
        if options.flatness:
            config["flatness"] = {}
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config, indent=1))
        print(f"train {name}", file=sys.stderr)
        summary = run(options.tools, "lookaround-train", "--config", path, "--out", path.with_suffix(""), resume=True)
        gradients = summary["compute"]["gradient_evaluations"]
        print(f"finished {name}: {gradients} gradients a run", file=sys.stderr)
        return {method["name"]: {**method, "steps": gradients} for method in summary["methods"]}


def percents(method: dict) -> list[float]:
    return [100 * accuracy for accuracy in method["accuracies"]]


def difference(method: dict, other: dict) -> str:
    """Cells: mean, deviation, seeds above 0."""
    if method is other:
        return "| |"
    gains = differences(percents(method), percents(other))
    return f"{statistics.fmean(gains):+.1f} | {spread(gains):.1f} | {sum(gain > 0 for gain in gains)} of {len(gains)}"


def print_table(first: str, rows: list[tuple[str, dict, list[dict]]], rivals: list[str]) -> None:
    """`rows`: title, a method, and what it is compared with, as `rivals` says."""
    extra = [("worst_loss", "loss, worst perturbed"), ("top_eigenvalue", "top eigenvalue")]
    if "flatness" not in rows[0][1]:
        extra = []
    cells = [first, "accuracy, %", "deviation"]
    for rival in rivals:
        cells += [f"minus {rival}, points", "deviation", "above 0"]
    cells += ["ensemble, %", *(title for _, title in extra)]
    print("| " + " | ".join(cells) + " |\n|---" + "|---:" * (len(cells) - 1) + "|")
    for title, method, others in rows:
        values = percents(method)
        line = [title, f"{statistics.fmean(values):.1f}", f"{spread(values):.1f}",
                *(difference(method, other) for other in others),
                f"{100 * method['ensemble']['accuracy']:.1f}" if "ensemble" in method else "",
                *(f"{method['flatness'][key]:.3g}" for key, _ in extra)]
        print("| " + " | ".join(line) + " |")


def compare_methods(study: Study, batches: int) -> None:
    titles = {"sgd": "SGD", "swa": "SWA", "lookahead": "Lookahead", "lookaround-5": "Lookaround, k = 5",
              "lookaround-epoch": f"Lookaround, k = {batches} (an epoch)", "sgd-recomputed": "SGD, recomputed",
              "lookaround-5-recomputed": "Lookaround, k = 5, recomputed",
              "lookaround-epoch-recomputed": f"Lookaround, k = {batches}, recomputed"}
    compared = [method for method in methods(batches) if method["name"] not in study.options.without]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda schedule: study.compare(schedule, 3, schedule, compared),
                              study.options.schedules))
    for schedule, rows in zip(study.options.schedules, found):
        rivals = {name: title for name, title in (("sgd", "SGD"), ("swa", "SWA")) if name in rows}
        table = []
        for name, row in rows.items():
            alike = {"sgd": "sgd-recomputed"} if name.endswith("recomputed") and "sgd-recomputed" in rows else {}
            table.append((titles[name], row, [rows[alike.get(rival, rival)] for rival in rivals]))
        print(f"\n{schedule.capitalize()}, {rows['sgd']['steps']} gradients a run:\n")
        print_table("method", table, list(rivals.values()))


def ablate(study: Study) -> None:
    settings = [(schedule, heads) for schedule in study.options.schedules for heads in HEADS]

    def train(setting: tuple[str, int]) -> dict:
        schedule, heads = setting
        # One head is SGD whatever k is.
        around = [{"type": "lookaround", "k": k, "name": f"lookaround-{k}"} for k in STEPS] if heads > 1 else []
        return study.compare(f"{schedule}-{heads}-heads", heads, schedule, [{"type": "sgd", "name": "sgd"}, *around])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = dict(zip(settings, pool.map(train, settings)))
    for schedule in study.options.schedules:
        steps = sorted({row["steps"] for heads in HEADS for row in found[schedule, heads].values()})
        print(f"\n{schedule.capitalize()}, {' or '.join(map(str, steps))} gradients a run:\n")
        table = []
        for heads in HEADS:
            rows = found[schedule, heads]
            streams = f"{heads} stream{'s' if heads > 1 else ''}"
            table.append((f"SGD, {streams}" + (" (Lookaround, d = 1)" if heads == 1 else ""), rows["sgd"],
                          [rows["sgd"]]))
            table += [(f"Lookaround, d = {heads}, k = {k}", rows[f"lookaround-{k}"], [rows["sgd"]])
                      for k in STEPS if heads > 1]
        print_table("method", table, ["SGD of as many streams"])


def main() -> int:
    parser = study_arguments(__doc__, "lookaround-study")
    parser.add_argument("--cifar", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--ablation", action="store_true", help="vary the number of heads and k")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4000, help="of the training set")
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--label-noise", type=float, default=0, help="share of training labels drawn anew")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    optional = [method["name"] for method in methods(1)[1:]]
    parser.add_argument("--without", nargs="+", default=[], choices=optional, help="methods to leave out")
    parser.add_argument("--flatness", action="store_true", help="measure it as well")
    parser.add_argument("--network", choices=["convnet", "resnet", "vgg"], default="resnet")
    parser.add_argument("--width", type=float, default=0.5, help="of a ResNet")
    parser.add_argument("--depth", type=int, default=8, help="of a ResNet")
    parser.add_argument("--pixels", type=int, default=16, help="side of the images")
    options = parser.parse_args()
    if options.ablation and options.epochs % 10 != 0:
        parser.error("--ablation: --epochs must be a multiple of 10, so that all take as many gradients")
    study = Study(options)
    if options.ablation:
        ablate(study)
    else:
        compare_methods(study, -(-options.images // options.batch_size))
    return 0


if __name__ == "__main__":
    sys.exit(main())
