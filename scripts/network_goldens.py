#!/usr/bin/env python3
"""Writes tests/data/golden/networks/forward.json: what torchvision's networks compute with weights that a formula gives,
for tests/golden/builtin_golden_test.cpp.

    scripts/network_goldens.py [--out FILE]

Needs torchvision 0.14 (Debian: python3-torchvision). The file is committed; run this only to change what is compared.
"""
import argparse
import json
import math
import pathlib

import torch
import torchvision

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/data/golden/networks/forward.json"


def wave(shape, phase):
    """Values in [-1, 1] that any language computes alike."""
    count = math.prod(shape)
    return torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + 1.3 * phase).reshape(shape)


def fill(network):
    """Every tensor by its place in the order of names; statistics and scales around 1."""
    for phase, (name, tensor) in enumerate(sorted(network.state_dict().items())):
        if name.endswith("num_batches_tracked"):
            continue
        values = wave(tensor.shape, phase)
        if tensor.dim() > 1:
            values *= 1.5 / math.sqrt(tensor[0].numel())
        elif name.endswith(("weight", "running_var")):
            values = 1 + 0.5 * values
        else:
            values *= 0.1
        tensor.copy_(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=OUT, type=pathlib.Path)
    out = parser.parse_args().out
    models = torchvision.models
    cases = [
        ("resnet18", {"stem": "imagenet", "outputs": 1000}, 64, models.resnet18()),
        ("resnet50", {"stem": "imagenet", "outputs": 1000}, 64, models.resnet50()),
        ("resnext50", {"stem": "imagenet", "outputs": 1000}, 64, models.resnext50_32x4d()),
        ("vit", {"image": 32, "patch": 8, "dim": 48, "depth": 3, "heads": 4, "mlp": 96, "outputs": 20}, 32,
         models.VisionTransformer(32, 8, 3, 4, 48, 96, num_classes=20)),
    ]
    golden = {"producer": f"torchvision {torchvision.__version__}, torch {torch.__version__}", "networks": []}
    with torch.no_grad():
        for name, options, side, network in cases:
            network.eval()
            fill(network)
            outputs = network(wave((2, 3, side, side), 0.5).float())
            golden["networks"].append({
                "builtin": name, "options": options, "input": [2, 3, side, side],
                "parameters": sum(p.numel() for p in network.parameters()),
                "state": {key: list(value.shape) for key, value in network.state_dict().items()},
                "outputs": outputs[:, :8].tolist()})
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w") as file:
        json.dump(golden, file)
        file.write("\n")


if __name__ == "__main__":
    main()
