#!/usr/bin/env python3
"""Sees how far mudsc-merge can derive and prove the unit groups of torchvision's families.

    scripts/architectures.py --out docs/architectures.md      # all, as a page
    scripts/architectures.py --models resnet18,vit_b_16       # some, on standard output

Every model is exported by export_model.py, scripted and traced, with random weights, and goes through
`mudsc-merge explain`. Exit codes: 0 all proved; 1 a proof failed, or explain could not read an export, or a
model could not be exported at all; 77 torchvision is missing. Takes minutes, and 2 GiB of memory.
"""
import argparse
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import warnings

import export_model

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = "2x3x64x64"
# One representative a family, slow ones last, with the input it is run on.
MODELS = {
    "alexnet": SMALL, "vgg11": SMALL, "vgg11_bn": SMALL, "resnet18": SMALL, "resnet50": SMALL,
    "wide_resnet50_2": SMALL, "resnext50_32x4d": SMALL, "densenet121": SMALL, "googlenet": SMALL,
    "mobilenet_v2": SMALL, "mobilenet_v3_small": SMALL, "mnasnet0_5": SMALL, "squeezenet1_1": SMALL,
    "shufflenet_v2_x0_5": SMALL, "efficientnet_b0": SMALL, "efficientnet_v2_s": SMALL,
    "regnet_x_400mf": SMALL, "regnet_y_400mf": SMALL, "convnext_tiny": SMALL,
    "vit_b_16": "2x3x224x224", "inception_v3": "2x3x299x299", "swin_t": "2x3x224x224",
    "swin_v2_t": "2x3x224x224", "maxvit_t": "2x3x224x224",
}
ROW = "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |"


@dataclasses.dataclass
class Attempt:
    """One export of one model: what explain said, or what went wrong."""
    model: str
    export: str
    explained: dict | None = None
    error: str = ""
    exported: bool = True

    @property
    def proved(self) -> bool:
        return self.explained is not None and not self.error

    @property
    def share(self) -> float:
        free, pinned = self.explained["units"]["free"], self.explained["units"]["pinned"]
        return free / max(1, free + pinned)


def one_line(text: str, limit: int = 200) -> str:
    """The last line that says something, without the folder of the archive."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()] or [""]
    line = re.sub(r"(?:/[^\s/:]+)+/", "", lines[-1]).removeprefix("mudsc-merge: error: ")
    return line if len(line) <= limit else line[:limit - 1] + "…"


def attempt(name: str, export: str, args: argparse.Namespace, work: pathlib.Path) -> Attempt:
    result = Attempt(name, export)
    archive = work / f"{name}-{export}.pt"
    command = [name, str(archive), "--input", MODELS[name]] + ["--trace"] * (export == "trace")
    if name in ("googlenet", "inception_v3"):
        command += ["--option", "init_weights=0"]  # slow, and the proof draws weights of its own
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            code = export_model.main(command)
    except Exception as error:  # whatever TorchScript cannot compile
        code, said = 1, io.StringIO(f"{type(error).__name__}: {one_line(error)}")
    if code != 0:
        result.exported, result.error = False, one_line(said.getvalue())
        return result
    explain = [args.binary, "explain", str(archive), "--input", MODELS[name], "--json", "--quiet"]
    run = subprocess.run(explain + ["--quick"] * (not args.full), capture_output=True,
                         text=True, env={"OMP_WAIT_POLICY": "passive", **os.environ})
    archive.unlink()
    if run.stdout.strip():
        result.explained = json.loads(run.stdout)
    if run.returncode != 0 or result.explained is None:
        result.error = one_line(run.stderr) or f"ended with {run.returncode}"
    return result


def why_pinned(explained: dict) -> str:
    """Reasons with their units, the largest first, each with the first place."""
    reasons: dict[str, list] = {}
    for remark in explained["pinned"]:
        entry = reasons.setdefault(remark["reason"], [0, ""])
        entry[0] += remark["units"]
        entry[1] = entry[1] or remark["where"]
    texts = []
    for reason, (units, where) in sorted(reasons.items(), key=lambda item: -item[1][0]):
        place = where if len(where) <= 48 else "…" + where[-47:]
        texts.append(f"{units}: {reason}" + (f" (`{place}`)" if place else ""))
    return "; ".join(texts)


def number(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.1e}"


def row(attempts: list[Attempt]) -> str:
    """Of exports that agree, or of one that failed."""
    first = attempts[0]
    exports = ", ".join(a.export + " **failed**" * (not a.proved) for a in attempts)
    if first.explained is None:
        return ROW.format(first.model, exports, MODELS[first.model], *[""] * 7)
    units, proof = first.explained["units"], first.explained["proof"]
    # JSON knows no infinity: null is a change to NaN, or a control without an axis to leave out.
    changes = [a.explained["proof"]["max_relative_change"] for a in attempts]
    controls = [a.explained["proof"]["negative_control"] for a in attempts]
    change = number(None if None in changes else max(changes), "∞")
    control = number(None if None in controls else min(controls), "")
    note = "" if proof["precision"] == "float64" else f" ({proof['precision']})"
    return ROW.format(first.model, exports, MODELS[first.model], len(first.explained["groups"]),
                      units["free"] + units["pinned"], units["free"], f"{100 * first.share:.1f}", change + note,
                      control, why_pinned(first.explained))


def rows(attempts: list[Attempt]) -> list[str]:
    """A row a model; more where its exports differ in what is free, or failed."""
    agreeing: dict[tuple, list[Attempt]] = {}
    for a in attempts:
        if a.proved:
            units = a.explained["units"]
            key = (len(a.explained["groups"]), units["free"], units["pinned"], why_pinned(a.explained))
            agreeing.setdefault(key, []).append(a)
    return [row(same) for same in agreeing.values()] + [row([a]) for a in attempts if a.exported and not a.proved]


def page(attempts: dict[str, list[Attempt]], args: argparse.Namespace, version: str) -> str:
    every = [a for tried in attempts.values() for a in tried]
    # Where exports differ the better one counts: it is the one to merge.
    shares = [max(a.share for a in tried if a.proved) for tried in attempts.values()
              if any(a.proved for a in tried)]
    command = "scripts/architectures.py" + " --full" * args.full
    command += f" --models {args.models}" if args.models else ""
    proof = "all groups together, and each alone" if args.full else "all groups together"
    lines = [
        "# Architectures", "",
        f"What `mudsc-merge explain` derives and proves of torchvision {version}, one network a family, random",
        "weights. Made by", "", f"    {command} --out docs/architectures.md", "",
        "*Hidden units* are produced by one layer and read by another; *free* ones can be permuted, *pinned* ones",
        f"keep their place. *Change* is max |Δ| / max |output| when {proof} are permuted at random,",
        "*control* the same with one parameter axis left out: far above the change, or the proof would be blind. Both",
        "are in float64; of two exports the worse figure stands. Networks that take any size ran on images of 64 × 64",
        "to save time. Where a proof failed, the units of the groups that it named count as pinned.", "",
        ROW.format("network", "export", "input", "groups", "hidden units", "free", "free, %", "change", "control",
                   "pinned, and why"),
        ROW.format(*["---"] * 3, *["---:"] * 6, "---"),
    ]
    for tried in attempts.values():
        lines += rows(tried)
    if shares:
        lines += ["", f"Mean share of free units: **{100 * sum(shares) / len(shares):.2f} %** over {len(shares)} of "
                      f"{len(attempts)} networks (of the better export where they differ)."]
    lines += ["", "## What failed", ""]
    failures = [f"- {a.model}, {a.export}: " + ("" if a.exported else "TorchScript could not export it: ") + a.error
                for a in every if a.error]
    lines += failures or [f"Nothing: all {len(every)} exports were made, and the groups of each were proved."]
    left_out = [name for name in MODELS if name not in attempts]
    if left_out:
        lines += ["", f"Not part of this run: {', '.join(left_out)}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build" / "release" / "tools" / "mudsc-merge"),
                        help="mudsc-merge (default: %(default)s)")
    parser.add_argument("--models", default="", help="names separated by commas (default: all there are)")
    parser.add_argument("--work", help="folder for the archives, one at a time (default: a temporary one)")
    parser.add_argument("--out", help="file to write the page to (default: standard output)")
    parser.add_argument("--full", action="store_true", help="prove each group alone as well")
    args = parser.parse_args()
    try:
        import torchvision
    except ImportError as error:
        print(f"architectures.py: skipped: {error} (on Debian: apt-get install python3-torchvision)", file=sys.stderr)
        return 77
    names = args.models.split(",") if args.models else [m for m in MODELS if hasattr(torchvision.models, m)]
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(MODELS)})")

    attempts: dict[str, list[Attempt]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(args.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in names:
            attempts[name] = []
            for export in ("script", "trace"):
                begin = time.monotonic()
                a = attempt(name, export, args, work)
                attempts[name].append(a)
                said = "proved" if a.proved else f"FAILED: {a.error}"
                print(f"{name} {export}: {said} ({time.monotonic() - begin:.1f} s)", file=sys.stderr, flush=True)
    text = page(attempts, args, torchvision.__version__.partition("a")[0])
    if args.out:
        pathlib.Path(args.out).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    wrong = any(a.exported and not a.proved for tried in attempts.values() for a in tried)
    unexported = any(not any(a.exported for a in tried) for tried in attempts.values())
    return 1 if wrong or unexported else 0


if __name__ == "__main__":
    sys.exit(main())
