#!/usr/bin/env python3
"""How far networks that have forgotten a class of CIFAR-10 are from the one that has not, by gradient fields.

    scripts/unlearning_study.py --cifar FOLDER [--seeds 3] [DIR]

FOLDER holds the binary version of CIFAR-10; without it the study is skipped with a message. A reference network (16 x 16
pixels), and so many of each: unrelated ones (another seed), ones trained from scratch without the last class
(retrained), ones trained on from the reference with that class's labels redrawn from the others (approximate
unlearning), and ones trained on without the class. The probe are the class's training images, the target is their label.
Networks that DIR (build/unlearning) holds already are not trained again.

Prints the distances to the reference as Markdown, mean and standard deviation over seeds. With --check the exit code is
1 unless approximate < unrelated < retrained. About 4 minutes on one core.
"""
import argparse
import json
import pathlib
import random
import sys

from cifar_networks import ARCHITECTURES, Trainer, cifar, data, write_images
from digit_networks import ROOT, run, spread

IMAGES = 5000
FORGOTTEN = 9
COPIES = 4  # of every image, each with labels drawn anew
KINDS = {"approximate": "trained on, labels redrawn", "without": "trained on without the class",
         "unrelated": "another seed", "retrained": "from scratch without the class"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "build" / "unlearning", metavar="DIR")
    parser.add_argument("--cifar", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--check", action="store_true", help="demand the paper's order")
    parser.add_argument("--tools", type=pathlib.Path, default=ROOT / "build" / "release" / "tools",
                        help="folder of the executables")
    options = parser.parse_args()
    images, test = cifar(options.cifar, "train")[:IMAGES], cifar(options.cifar, "test")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rest = [image for image in images if image[0] != FORGOTTEN]
    write_images(folder / "all.safetensors", images)
    write_images(folder / "rest.safetensors", rest)
    write_images(folder / "probe.safetensors", [image for image in images if image[0] == FORGOTTEN])
    write_images(folder / "test.safetensors", test[:1000])

    train = Trainer(options.tools, folder, options.epochs, folder / "test.safetensors")
    network = ARCHITECTURES["convnet"]
    few = max(COPIES, options.epochs // 2)
    archives = {"reference": train("reference", network, data(folder / "all.safetensors"), 1)}
    trained_on = {**network, "weights": str(folder / "reference" / "model.safetensors")}
    for seed in range(options.seeds):
        draw = random.Random(seed)
        others = [label for label in range(10) if label != FORGOTTEN]
        write_images(folder / f"redrawn-{seed}.safetensors",
                     [(draw.choice(others) if label == FORGOTTEN else label, pixels)
                      for _ in range(COPIES) for label, pixels in images])
        for kind, arguments in {
                "approximate": (trained_on, data(folder / f"redrawn-{seed}.safetensors"), 100 + seed, few // COPIES,
                                0.05),
                "without": (trained_on, data(folder / "rest.safetensors"), 200 + seed, few, 0.05),
                "unrelated": (network, data(folder / "all.safetensors"), 300 + seed),
                "retrained": (network, data(folder / "rest.safetensors"), 400 + seed)}.items():
            archives[f"{kind}-{seed}"] = train(f"{kind}-{seed}", *arguments)

    config = {
        "models": [{"name": name, "script": str(archive)} for name, archive in archives.items()],
        "reference": {"data": data(folder / "probe.safetensors", limit=500)},
        "field": {"steps": 8, "target": "label"}, "threads": 1, "cache": str(folder / "fields"),
        "task": {"type": "unlearning", "reference": ["reference"],
                 "sequences": [{"name": kind, "models": [f"{kind}-{seed}"]}
                               for seed in range(options.seeds) for kind in KINDS]}}
    path = folder / "judged.json"
    path.write_text(json.dumps(config, indent=1))
    found = {kind: [] for kind in KINDS}
    run(options.tools, "modelgif-dist", "--config", path, "--out", folder / "judged")
    # Each seed by itself, for the order.
    config["task"] = {"type": "matrix", "against": "reference"}
    path.write_text(json.dumps(config, indent=1))
    summary = run(options.tools, "modelgif-dist", "--config", path, "--out", folder / "against")
    for model, distance in zip(config["models"], summary["distances"]):
        if model["name"] != "reference":
            found[model["name"].rsplit("-", 1)[0]].append(distance)

    print("| network | accuracy, % | distance | deviation | least | most |\n|---|---:|---:|---:|---:|---:|")
    print(f"| reference | {train.accuracy['reference']:.1f} | | | | |")
    for kind, values in found.items():
        accuracy = sum(train.accuracy[f"{kind}-{seed}"] for seed in range(options.seeds)) / options.seeds
        print(f"| {kind}: {KINDS[kind]} | {accuracy:.1f} | {sum(values) / len(values):.3f} | {spread(values):.3f} "
              f"| {min(values):.3f} | {max(values):.3f} |")
    held = max(found["approximate"]) < min(found["unrelated"]) and max(found["unrelated"]) < min(found["retrained"])
    print(f"\nIn every pair of seeds approximate < unrelated < retrained: {'yes' if held else 'no'}")
    return 1 if options.check and not held else 0


if __name__ == "__main__":
    sys.exit(main())
