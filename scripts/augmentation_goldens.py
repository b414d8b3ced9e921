#!/usr/bin/env python3
"""Writes tests/data/golden/augment: what torchvision's tensor operations make of a small image, for
tests/golden/augment_golden_test.cpp.

    scripts/augmentation_goldens.py [--out FOLDER]

Needs torchvision 0.14 (Debian: python3-torchvision). The files are committed; run this only to change what is compared.
"""
import argparse
import json
import os
import pathlib
import struct

# Products without fused multiply-adds, whatever the processor: points half-way between two pixels, which shears have many
# of, go the way that they go in the committed files.
os.environ["OPENBLAS_CORETYPE"] = "Prescott"

import torch
import torchvision
from torchvision.transforms import autoaugment, functional, InterpolationMode

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/data/golden/augment"


def golden_image(height=14, width=18):
    """Gradients, flat patches, an edge and noise in three channels; one channel spans few values."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    noise = torch.randint(0, 40, (3, height, width), generator=torch.Generator().manual_seed(7))
    image = torch.stack([x * 11 + noise[0] % 23, 90 + y * 4 + noise[1] % 9, (x * y) % 97 + noise[2] * 3])
    image[:, 2:6, 3:8] = torch.tensor([250, 120, 0]).view(3, 1, 1)
    image[:, 9:12, 10:15] = 128
    image[:, 0, 0], image[:, 0, 1] = 255, 0
    image[1] = image[1].clamp(60, 200)
    return image.clamp(0, 255).to(torch.uint8)


def space(name, image):
    size = tuple(image.shape[-2:])
    if name == "autoaugment":
        return autoaugment.AutoAugment()._augmentation_space(10, size)
    if name == "randaugment":
        return autoaugment.RandAugment()._augmentation_space(31, size)
    return autoaugment.TrivialAugmentWide()._augmentation_space(31)


def apply(image, op, magnitude):
    return autoaugment._apply_op(image, op, magnitude, InterpolationMode.NEAREST, None)


def at_every_magnitude(image, op, values, signed):
    """(signs, magnitudes, channels, height, width)"""
    return torch.stack([torch.stack([apply(image, op, sign * float(v)) for v in values])
                        for sign in ((1, -1) if signed else (1,))])


def write_safetensors(path, tensors):
    metadata = {"producer": f"torchvision {torchvision.__version__}, torch {torch.__version__}"}
    header, offset = {"__metadata__": metadata}, 0
    kinds = {torch.uint8: "U8", torch.float32: "F32"}
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().numpy().tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=OUT, type=pathlib.Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    image = golden_image()
    grey = image[:1].clone()
    tensors, autoaugmented, magnitudes = {"image": image, "grey": grey}, {}, {}
    # The policies' operations at every magnitude, with both signs where they have one.
    for name in ("autoaugment", "randaugment", "trivialaugment"):
        for op, (values, signed) in space(name, image).items():
            values = values.reshape(-1).float()
            magnitudes.setdefault(name, {})[op] = {"values": values.tolist(), "signed": signed}
            if name == "autoaugment" and op in ("AutoContrast", "Equalize"):
                continue  # without a magnitude: the same as randaugment's
            own = tensors if name != "autoaugment" or op == "Invert" else autoaugmented
            own[f"{name}/{op}"] = at_every_magnitude(image, op, values, signed)
    for op, magnitude in (("Color", 0.9), ("Contrast", -0.5), ("Sharpness", 0.9), ("Equalize", 0.0), ("ShearX", 0.2)):
        tensors[f"grey/{op}"] = apply(grey, op, magnitude)

    cases = {"brightness": [0.0, 0.3, 1.0, 1.7], "contrast": [0.0, 0.3, 1.0, 1.7], "saturation": [0.0, 0.3, 1.0, 1.7],
             "hue": [-0.5, -0.27, -0.1, 0.0, 0.05, 0.25, 0.5]}
    for name, factors in cases.items():
        function = getattr(functional, f"adjust_{name}")
        tensors[f"jitter/{name}"] = torch.stack([function(image, f) for f in factors])
    rotations = [-180.0, -15.0, 0.0, 7.5, 45.0, 90.0]
    tensors["rotation"] = torch.stack(
        [functional.rotate(image, angle, interpolation=InterpolationMode.BILINEAR) for angle in rotations])
    # top, left, height, width, side of the result
    crops = [[0, 0, 14, 18, 14], [3, 2, 7, 9, 14], [5, 1, 4, 13, 9], [0, 0, 14, 18, 33], [13, 17, 1, 1, 5]]
    for i, (top, left, height, width, size) in enumerate(crops):
        tensors[f"resized_crop/{i}"] = functional.resized_crop(
            image, top, left, height, width, [size, size], InterpolationMode.BILINEAR)

    # padding, top, left
    shifts = [[4, 0, 0], [4, 8, 8], [2, 1, 4], [4, 3, 7], [13, 26, 0]]
    # top, left, height, width
    boxes = [[0, 0, 14, 18], [3, 2, 7, 9], [13, 17, 1, 1], [5, 0, 9, 4]]
    moves = {
        "crop": torch.stack([functional.crop(functional.pad(image, padding), top, left, 14, 18)
                             for padding, top, left in shifts]),
        "flip": torch.stack([functional.hflip(image), functional.vflip(image)]),
        "erase": torch.stack([functional.erase(image, *box, torch.zeros((), dtype=torch.uint8)) for box in boxes])}

    write_safetensors(out / "augment.safetensors", tensors)
    write_safetensors(out / "autoaugment.safetensors", autoaugmented)
    write_safetensors(out / "moves.safetensors", moves)
    larger = golden_image(40, 36)  # one of less than 255 pixels is left as it is
    write_safetensors(out / "equalize.safetensors", {"image": larger, "equalized": functional.equalize(larger)})
    policies = {
        name: [[[op, p, magnitude] for op, p, magnitude in pair]
               for pair in autoaugment.AutoAugment()._get_policies(policy)]
        for name, policy in (("cifar10", autoaugment.AutoAugmentPolicy.CIFAR10),
                             ("imagenet", autoaugment.AutoAugmentPolicy.IMAGENET))}
    cases.update({"rotation": rotations, "resized_crop": crops, "crop": shifts, "erase": boxes})
    with open(out / "augment.json", "w") as file:
        json.dump({"cases": cases, "magnitudes": magnitudes, "policies": policies}, file)
        file.write("\n")


if __name__ == "__main__":
    main()
