#!/usr/bin/env python3
"""Compares the ways to merge networks that know different classes of CIFAR-10.

    scripts/cifar_pairs.py --cifar FOLDER [--network resnet20] [--width 1] [--models 2] [--pairs 3] [--epochs 20]
                           [--cuts layer3,layer2] [--balances 0.1,0.9] [DIR]

FOLDER holds the binary version of CIFAR-10; without it the study is skipped with a message. A pair draws a division of
the ten classes at random, trains a network on each part, each from a seed of its own, and merges them in every way. All
have one head: 512 outputs compared with fixed random unit vectors, one a class. Networks that DIR (build/cifar-pairs)
holds already, trained alike, are not trained again; two are trained at a time, on a thread each.

Wide networks of whole images want a GPU: --width 4 --pixels 32 --images 50000 --batch 256 --epochs 200 --device cuda.

Dual space is tried at balance 0.5 and at those of --balances (the share of weight space).

With --cuts networks are also merged up to each of these submodules alone; what follows stays each network's own.

Prints joint accuracy on all ten classes, accuracy on each part and its mean over parts (task average), and paired
differences as Markdown.
"""
import concurrent.futures
import functools
import json
import pathlib
import random
import statistics
import sys

from cifar_networks import ARCHITECTURES, Trainer, cifar, data, write_images
from digit_networks import WHOLE, differences, print_by_cut, run, scores_of, spread, study_arguments

HEAD = {"type": "embedding", "embeddings": {"random": 512, "seed": 0, "common": 0.75}, "scale": 30}
NETWORKS = {
    "resnet20": {"builtin": "resnet20", "options": {"outputs": 512}},
    "group-norm": {"builtin": "resnet20", "options": {"norm": "group", "groups": 4, "outputs": 512}},
    "vit": {"builtin": "vit", "options": {**ARCHITECTURES["vit"]["options"], "outputs": 512}},
}
SPACES = ["weight", "activation"]
COMPARED = [("zip-dual-0.5", "align-dual-0.5"), ("zip-dual-0.5", "average"),
            *((f"{method}-dual-0.5", f"{method}-{space}") for method in ("align", "zip")
              for space in SPACES)]


def ways(balances: list[float]) -> list[dict]:
    """What `compare` of mudsc-merge takes: every way to merge, dual space at each balance."""
    return [{"method": "average"}] + [
        {"method": method, **space} for method in ("align", "zip")
        for space in [*({"space": space} for space in SPACES),
                      *({"space": "dual", "balance": balance} for balance in balances)]]


def main() -> int:
    parser = study_arguments(__doc__, "cifar-pairs")
    parser.add_argument("--cifar", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--width", type=float, default=1, help="of a ResNet")
    parser.add_argument("--models", type=int, default=2, help="networks that share the classes")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=25000, help="of the training set, all classes together")
    parser.add_argument("--pixels", type=int, default=16, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=64, help="size of the training's batches")
    parser.add_argument("--lr", type=float, default=0.1, help="of a ResNet; a transformer's Adam takes a fiftieth")
    parser.add_argument("--device", default="cpu", help="of all training and merging")
    parser.add_argument("--cuts", default="", help="submodules, separated by commas")
    parser.add_argument("--balances", default="", help="of dual space beside 0.5, separated by commas")
    options = parser.parse_args()
    images, test = cifar(options.cifar, "train")[:options.images], cifar(options.cifar, "test")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}-{len(images)}.safetensors" for name in ("train", "few", "test")}
    write_images(files["train"], images)
    write_images(files["few"], images[:2000])
    write_images(files["test"], test)

    network = json.loads(json.dumps(NETWORKS[options.network]))
    if network["builtin"] == "resnet20":
        network["options"]["width"] = options.width
    else:
        network["options"]["image"] = options.pixels
    compared = ways(sorted({0.5, *map(float, filter(None, options.balances.split(",")))}))
    sized = functools.partial(data, resize=options.pixels)
    train = Trainer(options.tools, folder, options.epochs, files["test"], batch_size=options.batch,
                    device=options.device)

    def archives(pair: int, parts: list[list[int]]) -> list[pathlib.Path]:
        def one(index: int) -> pathlib.Path:
            sets = {name: sized(files[name], classes=parts[index]) for name in ("train", "test")}
            return train(f"{pair}-{index}-{options.network}", network, sets["train"],
                         options.models * pair + index + 1, lr=options.lr, data=sets,
                         objective={**HEAD, "candidates": "data"})
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(options.models)))

    def accuracies(pair: int, cut: str, models: list[dict], parts: list[list[int]]) -> dict:
        """Of the pair, merged in every way up to the cut; see scores_of()."""
        sets = [{"name": f"part {i + 1}", "data": sized(files["test"], classes=part), "candidates": "data",
                 **({} if cut == WHOLE else {"head": f"part {i + 1}"})} for i, part in enumerate(parts)]
        config = {"models": models, "compare": compared, "activations": {"data": sized(files["few"])},
                  "device": options.device,
                  **({} if cut == WHOLE else {"partial": {"until": cut}}),
                  "evaluation": {"objective": HEAD,
                                 "sets": [{"name": "all ten", "data": sized(files["test"])}, *sets]}}
        path = folder / ("-".join([str(pair), options.network] + ([] if cut == WHOLE else [cut])) + ".json")
        path.write_text(json.dumps(config, indent=1))
        return scores_of(run(options.tools, "mudsc-merge", "--config", path, "--out", path.with_suffix("")))

    found = {cut: [] for cut in [WHOLE, *filter(None, options.cuts.split(","))]}
    for pair in range(options.pairs):
        print(f"{pair + 1} of {options.pairs}", file=sys.stderr)
        classes = list(range(10))
        random.Random(pair).shuffle(classes)
        parts = [sorted(classes[i::options.models]) for i in range(options.models)]
        models = [{"name": f"part {i + 1}", "script": str(path)} for i, path in enumerate(archives(pair, parts))]
        for cut, pairs in found.items():
            pairs.append(accuracies(pair, cut, models, parts))
    whole = {name: {key: [pair[name][key] for pair in found[WHOLE]] for key in scores}
             for name, scores in found[WHOLE][0].items()}
    columns = {"joint": "all ten", **{f"part {i + 1}": f"part {i + 1}" for i in range(options.models)},
               "task average": "task_average"}

    print("| accuracy, % | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for name, scores in whole.items():
        print(f"| {name} | " + " | ".join(f"{statistics.fmean(scores[key]):.1f} ± {spread(scores[key]):.1f}"
                                         for key in columns.values()) + " |")
    print("\n| paired difference of joint accuracy, points | mean | deviation | above 0 |\n|---|---:|---:|---:|")
    for better, worse in COMPARED:
        gains = differences(whole[better]["all ten"], whole[worse]["all ten"])
        print(f"| {better} - {worse} | {statistics.fmean(gains):+.1f} | {spread(gains):.1f} "
              f"| {sum(gain > 0 for gain in gains)} of {len(gains)} |")
    if len(found) > 1:
        print_by_cut(found)
    trained = statistics.fmean(train.accuracy.values())
    print(f"\n{len(train.accuracy)} networks, {trained:.1f} % on their own classes on average.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
