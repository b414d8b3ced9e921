#!/usr/bin/env python3
"""Compares ways to choose the balance of dual space, over pairs of networks of the shipped digits.

    scripts/balance_choice.py [--pairs 20] [DIR]

Trains the pairs of scripts/digit_pairs.py unless DIR (build/pairs) holds them already, merges each with five balances and
with the one of them that "select_on" chooses with labels (on training data) or without. Prints the joint accuracy on the
test digits, mean and standard deviation over pairs, as Markdown. About 15 seconds a pair.
"""
import json
import statistics
import sys

from digit_networks import accuracies, differences, spread, study_arguments, trained

METHODS = ("align", "zip")
BALANCES = [0.1, 0.3, 0.5, 0.7, 0.9]
CHOICES = {"with labels": "all ten", "without labels": "similarity"}


def main() -> int:
    parser = study_arguments(__doc__, "pairs")
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    dual = [{"method": method, "space": "dual", "balance": balance} for method in METHODS for balance in BALANCES]
    single = [{"method": method, "space": space} for method in METHODS for space in ("weight", "activation")]
    swept = [{"method": method, "space": "dual", "balance": BALANCES} for method in METHODS]

    found = {method: [] for method in METHODS}  # {name: joint accuracy in %} a pair
    for pair in range(options.pairs):
        print(f"pair {pair + 1} of {options.pairs}", file=sys.stderr)
        models = trained(options.tools, folder, 2 * pair + 1)
        fixed = accuracies(options.tools, models, folder / "balances",
                           f"compare={json.dumps([{'method': 'average'}, *single, *dual])}")
        chosen = {name: accuracies(options.tools, models, folder / "chosen", f"compare={json.dumps(swept)}",
                                   f"select_on={choice}") for name, choice in CHOICES.items()}
        for method, pairs in found.items():
            of = {str(balance): fixed[f"{method}-dual-{balance}"]["all ten"] for balance in BALANCES}
            pairs.append({
                **{f"chosen {name}": scores[f"{method}-dual"]["all ten"] for name, scores in chosen.items()},
                **of, "the best of the five in hindsight": max(of.values()),
                **{f"{space} space": fixed[f"{method}-{space}"]["all ten"] for space in ("weight", "activation")},
                "average": fixed["average"]["all ten"]})

    print("| joint accuracy, % | " + " | ".join(METHODS) + " |\n|---|" + "---:|" * len(METHODS))
    for name in found["align"][0]:
        columns = [[pair[name] for pair in found[method]] for method in METHODS]
        print(f"| {name} | " + " | ".join(f"{statistics.fmean(c):.1f} ± {spread(c):.1f}" for c in columns) + " |")
    print("\n| paired difference, points | " + " | ".join(METHODS) + " |\n|---|" + "---:|" * len(METHODS))
    for better, worse in (("chosen with labels", "chosen without labels"),
                          ("the best of the five in hindsight", "chosen with labels"),
                          ("chosen without labels", "0.5")):
        gains = [differences([pair[better] for pair in found[method]], [pair[worse] for pair in found[method]])
                 for method in METHODS]
        print(f"| {better} - {worse} | "
              + " | ".join(f"{statistics.fmean(g):+.1f} ± {spread(g):.1f}" for g in gains) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
