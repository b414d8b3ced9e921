#!/usr/bin/env python3
"""Compares the ways to merge over pairs of networks of the shipped digits.

    scripts/digit_pairs.py [--pairs 20] [--check] [DIR]

Trains the pairs of scripts/demo.sh (digits 0-4 and 5-9, seeds 1 and 2, 3 and 4, ...) unless DIR (build/pairs) holds
them already, merges each in the variants of configs/mudsc-merge/demo.json and prints the joint accuracy, mean and
standard deviation over pairs, and paired differences as Markdown. With --check the exit code is 1 unless the means hold
what docs/reproducing.md says of them. About 10 seconds a pair.
"""
import pathlib
import statistics
import sys

from digit_networks import accuracies, differences, spread, study_arguments, trained

# (better, worse, least mean difference in points): what --check demands.
MARGINS = [
    ("zip-dual-0.5", "align-dual-0.5", 8.0),
    ("zip-weight", "align-weight", 8.0),
    ("zip-activation", "align-activation", 8.0),
    ("zip-dual-0.5", "average", 15.0),
    ("align-dual-0.5", "align-weight", -2.0),
    ("align-dual-0.5", "align-activation", -2.0),
    ("zip-dual-0.5", "zip-weight", -2.0),
    ("zip-dual-0.5", "zip-activation", -2.0),
]


def main() -> int:
    parser = study_arguments(__doc__, "pairs")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--check", action="store_true", help="demand the margins")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    found = []
    for pair in range(options.pairs):
        print(f"pair {pair + 1} of {options.pairs}", file=sys.stderr)
        models = trained(options.tools, folder, 2 * pair + 1)
        found.append(accuracies(options.tools, models, folder / "merged"))
    joint = {name: [scores[name]["all ten"] for scores in found] for name in found[0]}

    print("| joint accuracy, % | mean | deviation | least | most |\n|---|---:|---:|---:|---:|")
    for name, values in joint.items():
        print(f"| {name} | {statistics.fmean(values):.1f} | {spread(values):.1f} | {min(values):.1f} "
              f"| {max(values):.1f} |")
    print("\n| paired difference, points | mean | deviation | pairs above 0 | demanded |\n|---|---:|---:|---:|---:|")
    failed = False
    for better, worse, least in MARGINS:
        gains = differences(joint[better], joint[worse])
        mean = statistics.fmean(gains)
        failed |= mean < least
        print(f"| {better} - {worse} | {mean:+.1f} | {spread(gains):.1f} | {sum(g > 0 for g in gains)} of {len(gains)} "
              f"| {least:+.0f}{' **missed**' * (mean < least)} |")
    return 1 if options.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())
