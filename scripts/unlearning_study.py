#!/usr/bin/env python3
"""How far networks that have forgotten a class of CIFAR-10 are from the one that has not, by gradient fields.

    scripts/unlearning_study.py --cifar FOLDER [--seeds 3] [DIR]

FOLDER holds the binary version of CIFAR-10; without it the study is skipped with a message. For every seed a reference
network (16 x 16 pixels), an unrelated one (another seed), one trained from scratch without the last class (retrained),
one trained on from the reference with that class's labels redrawn from the others (approximate unlearning), and one
trained on without the class. The probe are the class's training images, the target is their label. Networks that DIR
(build/unlearning) holds already are not trained again.

Prints the distances to the reference as Markdown, mean, standard deviation, least and most over seeds, by fields and by
what costs less. With --check the exit code is 1 unless approximate < unrelated < retrained for every seed. About a
minute and a half a seed on one core.
"""
import json
import pathlib
import random
import statistics
import sys

from cifar_networks import ARCHITECTURES, Trainer, cifar, data, write_images
from digit_networks import run, spread, study_arguments

IMAGES = 5000
FORGOTTEN = 9
COPIES = 4  # of every image, each with labels drawn anew
KINDS = {"approximate": "trained on, labels redrawn", "without": "trained on without the class",
         "unrelated": "another seed", "retrained": "from scratch without the class"}
# Lists of the summary: by fields, and three cheaper distances.
DISTANCES = ("distances", "gradient_input", "output_cosine", "cka")


def main() -> int:
    parser = study_arguments(__doc__, "unlearning")
    parser.add_argument("--cifar", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--check", action="store_true", help="demand the paper's order")
    options = parser.parse_args()
    images, test = cifar(options.cifar, "train")[:IMAGES], cifar(options.cifar, "test")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rest = [image for image in images if image[0] != FORGOTTEN]
    write_images(folder / "all.safetensors", images)
    write_images(folder / "rest.safetensors", rest)
    write_images(folder / "probe.safetensors", [image for image in images if image[0] == FORGOTTEN])
    write_images(folder / "test.safetensors", test[:1000])

    network = ARCHITECTURES["convnet"]
    few = max(COPIES, options.epochs // 2)
    others = [label for label in range(10) if label != FORGOTTEN]
    found = {kind: {distance: [] for distance in DISTANCES} for kind in KINDS}
    accuracy = {name: [] for name in ("reference", *KINDS)}
    for seed in range(options.seeds):
        train = Trainer(options.tools, folder / str(seed), options.epochs, folder / "test.safetensors")
        train.folder.mkdir(exist_ok=True)
        draw = random.Random(seed)
        redrawn = train.folder / "redrawn.safetensors"
        write_images(redrawn, [(draw.choice(others) if label == FORGOTTEN else label, pixels)
                               for _ in range(COPIES) for label, pixels in images])
        archives = {"reference": train("reference", network, data(folder / "all.safetensors"), seed)}
        trained_on = {**network, "weights": str(train.folder / "reference" / "model.safetensors")}
        for kind, arguments in {
                "approximate": (trained_on, data(redrawn), 100 + seed, few // COPIES, 0.05),
                "without": (trained_on, data(folder / "rest.safetensors"), 200 + seed, few, 0.05),
                "unrelated": (network, data(folder / "all.safetensors"), 300 + seed),
                "retrained": (network, data(folder / "rest.safetensors"), 400 + seed)}.items():
            archives[kind] = train(kind, *arguments)
        for name, values in accuracy.items():
            values.append(train.accuracy[name])
        config = {
            "models": [{"name": name, "script": str(archive)} for name, archive in archives.items()],
            "reference": {"data": data(folder / "probe.safetensors", limit=500)},
            "field": {"steps": 8, "target": "label"}, "threads": 1, "cache": str(train.folder / "fields"),
            "task": {"type": "matrix", "against": "reference"}}
        path = train.folder / "judged.json"
        path.write_text(json.dumps(config, indent=1))
        summary = run(options.tools, "modelgif-dist", "--config", path, "--out", train.folder / "judged")
        for i, kind in enumerate(archives):
            if kind in found:
                for distance, values in found[kind].items():
                    values.append(summary[distance][i])

    print("| network | accuracy, % | distance | deviation | least | most | gradient x input | output cosine | CKA |\n"
          "|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    print(f"| reference | {statistics.fmean(accuracy['reference']):.1f} | | | | | | | |")
    for kind, distances in found.items():
        values, *cheaper = distances.values()
        print(f"| {kind}: {KINDS[kind]} | {statistics.fmean(accuracy[kind]):.1f} | {statistics.fmean(values):.3f} "
              f"| {spread(values):.3f} | {min(values):.3f} | {max(values):.3f} | "
              + " | ".join(f"{statistics.fmean(each):.3f} ± {spread(each):.3f}" for each in cheaper) + " |")
    order = [found[kind]["distances"] for kind in ("approximate", "unrelated", "retrained")]
    held = sum(a < b < c for a, b, c in zip(*order))
    print(f"\napproximate < unrelated < retrained: for {held} of {options.seeds} seeds")
    return 1 if options.check and held < options.seeds else 0


if __name__ == "__main__":
    sys.exit(main())
