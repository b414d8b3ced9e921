#!/usr/bin/env python3
"""Measures how accuracy depends on where a partial merge is cut, over pairs of networks of the shipped digits.

    scripts/partial_zip.py [--pairs 6] [--cuts bn4,bn3,bn2,bn1] [DIR]

Trains the pairs of scripts/demo.sh (digits 0-4 and 5-9, seeds 1 and 2, 3 and 4, ...) unless DIR (build/partial) holds
them already, merges each in the variants of configs/mudsc-merge/demo.json, whole and cut behind every submodule named,
and prints means and paired differences to the whole merge in points as Markdown: of the joint accuracy, where all
heads answer, and of the task average, where each set is answered by its own head. About 20 seconds a pair.
"""
import sys

from digit_networks import WHOLE, accuracies, print_by_cut, study_arguments, trained


def partial_settings(cut):
    return [] if cut == WHOLE else [f"partial.until={cut}", "evaluation.sets.1.head=low", "evaluation.sets.2.head=high"]


def main():
    parser = study_arguments(__doc__, "partial")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--cuts", default="bn4,bn3,bn2,bn1")
    options = parser.parse_args()
    cuts = [WHOLE, *options.cuts.split(",")]
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    found = {cut: [] for cut in cuts}
    for pair in range(options.pairs):
        models = trained(options.tools, folder, 2 * pair + 1)
        for cut in cuts:
            print(f"pair {pair + 1}: {cut}", file=sys.stderr)
            found[cut].append(accuracies(options.tools, models, folder / "merged", *partial_settings(cut)))

    print_by_cut(found)


if __name__ == "__main__":
    main()
