#!/usr/bin/env python3
"""The pipelines of augment_bench with torchvision on Pillow images, one thread: images a second of processor time, and
how many times as many ours makes. Skipped where torchvision is missing.

    augment_against_torchvision.py FOLDER
"""
import json
import pathlib
import sys
import time

try:
    import numpy
    import torch
    from PIL import Image
    from torchvision import transforms
except ImportError as error:
    print(f"no comparison with torchvision: {error}")
    sys.exit(0)

torch.set_num_threads(1)
ours = json.loads((pathlib.Path(sys.argv[1]) / "augment.json").read_text())
extra = {
    "crop, flip": [],
    "crop, flip, rotation": [transforms.RandomRotation(15, transforms.InterpolationMode.BILINEAR)],
    "crop, flip, AutoAugment": [transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)],
    "crop, flip, RandAugment": [transforms.RandAugment()],
    "crop, flip, TrivialAugment": [transforms.TrivialAugmentWide()],
    "crop, flip, colour jitter": [transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)],
}
print("against torchvision on Pillow images, images a second of processor time")
for side, rates in ours.items():
    side = int(side)
    small = torch.rand(64, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(1)) * 255
    images = torch.nn.functional.interpolate(small, (side, side), mode="bilinear").byte().permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(image) for image in images]
    crop = transforms.RandomCrop(32, padding=4) if side == 32 else transforms.RandomResizedCrop(side)
    for name, rate in rates.items():
        pipeline = transforms.Compose([
            crop, transforms.RandomHorizontalFlip(), *extra[name], transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.25] * 3)])
        rounds, best = (16 if side == 32 else 1), 0
        for _ in range(3):
            start = time.process_time()
            for _ in range(rounds):
                for image in images:
                    pipeline(image)
            best = max(best, rounds * len(images) / (time.process_time() - start))
        print(f"  {side:3} {name:28} {best:9.0f}   ours {rate / best:5.1f} x")
