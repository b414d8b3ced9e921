#!/usr/bin/env python3
"""Writes the shipped digits data set (lib/weightsmith/data/digits) as IDX files.

Source: digits.csv.gz of scikit-learn (Debian: python3-sklearn), a copy of the test part of the UCI data set
"Optical Recognition of Handwritten Digits": 1,797 rows of 64 pixels in 0..16 and a label.

    scripts/make_digits.py [--csv FILE] [--out FOLDER]

Pixels become round(p * 255 / 16), halves to the even neighbour. The first 1,257 images are the training part, the
other 540 the test part: within every class the rows are shuffled (random.Random(0), classes in order) and 70 % go to
training, rounded so that the parts have exactly those sizes (largest remainder); then each part is shuffled.
"""
import argparse
import gzip
import pathlib
import random
import struct

TRAIN = 1257
CSV = "/usr/lib/python3/dist-packages/sklearn/datasets/data/digits.csv.gz"
OUT = pathlib.Path(__file__).resolve().parent.parent / "lib/weightsmith/data/digits"


def split(labels):
    """Row numbers of the training part, then of the test part."""
    rng = random.Random(0)
    rows = {c: [i for i, label in enumerate(labels) if label == c] for c in sorted(set(labels))}
    exact = {c: len(r) * TRAIN / len(labels) for c, r in rows.items()}
    take = {c: int(x) for c, x in exact.items()}
    for c in sorted(exact, key=lambda c: take[c] - exact[c])[: TRAIN - sum(take.values())]:
        take[c] += 1
    train, test = [], []
    for c, r in rows.items():
        rng.shuffle(r)
        train += r[: take[c]]
        test += r[take[c] :]
    rng.shuffle(train)
    rng.shuffle(test)
    return train + test


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", default=CSV)
    parser.add_argument("--out", default=OUT, type=pathlib.Path)
    args = parser.parse_args()
    with gzip.open(args.csv, "rt") as file:
        table = [[int(float(v)) for v in line.split(",")] for line in file if line.strip()]
    if len(table) != 1797 or any(len(row) != 65 or min(row) < 0 or max(row) > 16 for row in table):
        parser.error(f"{args.csv}: expected 1797 rows of 64 pixels in 0..16 and a label")
    order = split([row[64] for row in table])
    args.out.mkdir(parents=True, exist_ok=True)
    pixels = bytes(round(p * 255 / 16) for i in order for p in table[i][:64])
    labels = bytes(table[i][64] for i in order)
    (args.out / "images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, len(order), 8, 8) + pixels)
    (args.out / "labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(order)) + labels)


if __name__ == "__main__":
    main()
