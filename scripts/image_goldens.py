#!/usr/bin/env python3
"""Writes tests/data/golden/images: small JPEG and PNG files of every kind and the pixels that Pillow reads from them, for
tests/golden/image_golden_test.cpp.

    scripts/image_goldens.py [--out FOLDER]

Needs Pillow and NumPy. The files are committed; run this only to change what is compared.
"""
import argparse
import json
import pathlib

import numpy
from PIL import Image, __version__

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/data/golden/images"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=OUT, type=pathlib.Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    y, x = numpy.mgrid[0:12, 0:17]
    values = numpy.stack([x * 15, y * 20, (x * y) % 200 + 30], axis=2).astype(numpy.uint8)
    rgb = Image.fromarray(values)
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray((x * 10 + 40).astype(numpy.uint8)))
    files = {
        "rgb.png": rgb, "grey.png": rgb.convert("L"), "palette.png": rgb.quantize(16), "alpha.png": rgba,
        "bilevel.png": rgb.convert("1"), "rgb.jpg": rgb, "grey.jpeg": rgb.convert("L"), "cmyk.jpg": rgb.convert("CMYK"),
        "progressive.JPG": rgb, "small.png": rgb.crop((2, 3, 7, 8)),
    }
    pixels = {}
    for name, image in files.items():
        image.save(out / name, **({"progressive": True} if name.startswith("progressive") else {}))
        with Image.open(out / name) as stored:
            pixels[name] = numpy.asarray(stored.convert("RGB")).transpose(2, 0, 1).tolist()
    with open(out / "pixels.json", "w") as file:
        json.dump({"producer": f"Pillow {__version__}", "pixels": pixels}, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
