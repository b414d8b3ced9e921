#!/usr/bin/env python3
"""Sees how far mudsc-merge can derive, prove and match the unit groups of torchvision's families and of the networks in
example_networks.py.

    scripts/architectures.py --out docs/architectures.md      # all, as a page
    scripts/architectures.py --models resnet18,vit_b_16       # some, on standard output

Every model is exported by export_model.py, scripted and traced, with random weights, and goes through
`mudsc-merge explain`, which also writes a copy with its units permuted at random; then the copy is aligned to the
model by weights alone and averaged with it, which has to give the model back. Exit codes: 0 all proved and recovered;
1 a proof or a recovery failed, or explain could not read an export, or a model could not be exported at all; 77
torchvision is missing. Takes minutes, and 2 GiB of memory.
"""
import argparse
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings

import example_networks
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
    **{name: shape for name, (_, shape) in example_networks.NETWORKS.items()},
}
FUNCTION_TOLERANCE = 1e-4  # largest relative change of the outputs after a permuted copy was merged in
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", **os.environ}
ROW = "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |"


@dataclasses.dataclass
class Recovery:
    """What merging the model with a permuted copy of itself gave."""
    exact: bool    # every parameter and buffer is the model's, bit for bit
    change: float  # max |difference| / max |output|

    @property
    def holds(self) -> bool:
        return self.exact and self.change <= FUNCTION_TOLERANCE


@dataclasses.dataclass
class Attempt:
    """One export of one model: what explain said, or what went wrong."""
    model: str
    export: str
    explained: dict | None = None
    recovery: "Recovery | None" = None
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


def export(name: str, kind: str, archive: pathlib.Path) -> str:
    """Writes the archive; returns what went wrong, or nothing."""
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            if name in example_networks.NETWORKS:
                example_networks.export(name, archive, trace=kind == "trace")
                return ""
            command = [name, str(archive), "--input", MODELS[name]] + ["--trace"] * (kind == "trace")
            if name in ("googlenet", "inception_v3"):
                command += ["--option", "init_weights=0"]  # slow, and the proof draws weights of its own
            return one_line(said.getvalue()) if export_model.main(command) != 0 else ""
    except Exception as error:  # whatever TorchScript cannot compile
        return f"{type(error).__name__}: {one_line(error)}"


def recover(name: str, archive: pathlib.Path, copy: pathlib.Path, args: argparse.Namespace) -> Recovery | str:
    """Aligns the permuted copy to the model by weights, averages the two, and compares; or what went wrong."""
    import torch
    out = archive.with_suffix(".merged")
    config = archive.with_suffix(".json")
    config.write_text(json.dumps({
        "models": [{"script": str(archive)}, {"script": str(copy)}], "inputs": MODELS[name].split(),
        "method": "align", "space": "weight", "iterations": {"start": "propagate"},
        "normalization": {"mode": "none"}}), encoding="utf-8")
    run = subprocess.run([args.binary, "--config", str(config), "--out", str(out), "--no-verify", "--quiet"],
                         capture_output=True, text=True, env=ENVIRONMENT)
    try:
        if run.returncode != 0:
            return one_line(run.stderr) or f"ended with {run.returncode}"
        model, merged = (torch.jit.load(str(path)).eval() for path in (archive, out / "merged.pt"))
        state, given_back = model.state_dict(), merged.state_dict()
        exact = state.keys() == given_back.keys() and all(torch.equal(state[key], given_back[key]) for key in state)
        with torch.no_grad():
            inputs = example_networks.example_inputs(MODELS[name])
            first, second = (flat_outputs(network(*inputs)) for network in (model, merged))
        # An output that is all zero (a head's initial weights) can only stay so.
        change = max(float((b.double() - a.double()).abs().max() / (a.abs().max() or 1)) for a, b in zip(first, second))
        return Recovery(exact, change)
    finally:
        shutil.rmtree(out, ignore_errors=True)
        config.unlink()


def flat_outputs(value) -> list:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value if item is not None for tensor in flat_outputs(item)]
    return [value]


def attempt(name: str, kind: str, args: argparse.Namespace, work: pathlib.Path) -> Attempt:
    result = Attempt(name, kind)
    archive, copy = work / f"{name}-{kind}.pt", work / f"{name}-{kind}-permuted.pt"
    result.error = export(name, kind, archive)
    if result.error:
        result.exported = False
        return result
    explain = [args.binary, "explain", str(archive), "--json", "--quiet", "--permuted", str(copy)]
    explain += [argument for shape in MODELS[name].split() for argument in ("--input", shape)]
    run = subprocess.run(explain + ["--quick"] * (not args.full), capture_output=True, text=True, env=ENVIRONMENT)
    if run.stdout.strip():
        result.explained = json.loads(run.stdout)
    if run.returncode != 0 or result.explained is None:
        result.error = one_line(run.stderr) or f"ended with {run.returncode}"
    else:
        recovered = recover(name, archive, copy, args)
        if isinstance(recovered, Recovery):
            result.recovery = recovered
            if not recovered.holds:
                result.error = f"merging with a permuted copy changed the outputs by {recovered.change:.1e}"
        else:
            result.error = recovered
    archive.unlink()
    copy.unlink(missing_ok=True)
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


def recovered(attempts: list[Attempt]) -> str:
    recoveries = [a.recovery for a in attempts]
    if None in recoveries:
        return ""
    worst = max(recovery.change for recovery in recoveries)
    return "exactly" if all(recovery.exact for recovery in recoveries) else f"no ({worst:.1e})"


def row(attempts: list[Attempt]) -> str:
    """Of exports that agree, or of one that failed."""
    first = attempts[0]
    exports = ", ".join(a.export + " **failed**" * (not a.proved) for a in attempts)
    if first.explained is None:
        return ROW.format(first.model, exports, MODELS[first.model], *[""] * 8)
    units, proof = first.explained["units"], first.explained["proof"]
    # JSON knows no infinity: null is a change to NaN, or a control without an axis to leave out.
    changes = [a.explained["proof"]["max_relative_change"] for a in attempts]
    controls = [a.explained["proof"]["negative_control"] for a in attempts]
    change = number(None if None in changes else max(changes), "∞")
    control = number(None if None in controls else min(controls), "")
    note = "" if proof["precision"] == "float64" else f" ({proof['precision']})"
    return ROW.format(first.model, exports, MODELS[first.model], len(first.explained["groups"]),
                      units["free"] + units["pinned"], units["free"], f"{100 * first.share:.1f}", change + note,
                      control, recovered(attempts), why_pinned(first.explained))


def rows(attempts: list[Attempt]) -> list[str]:
    """A row a model; more where its exports differ in what is free, or failed."""
    agreeing: dict[tuple, list[Attempt]] = {}
    for a in attempts:
        if a.proved:
            units = a.explained["units"]
            # The same operator goes by another name in a trace.
            reasons = sorted((remark["reason"], remark["units"]) for remark in a.explained["pinned"])
            key = (len(a.explained["groups"]), units["free"], units["pinned"], tuple(reasons))
            agreeing.setdefault(key, []).append(a)
    return [row(same) for same in agreeing.values()] + [row([a]) for a in attempts if a.exported and not a.proved]


def page(attempts: dict[str, list[Attempt]], args: argparse.Namespace, version: str) -> str:
    every = [a for tried in attempts.values() for a in tried]
    # Where exports differ the better one counts: it is the one to merge.
    shares = [max(a.share for a in tried if a.proved) for tried in attempts.values()
              if any(a.proved for a in tried)]
    command = "scripts/architectures.py" + " --full" * args.full
    command += f" --models {args.models}" if args.models else ""
    proof = "all groups together, and each alone," if args.full else "all groups together"
    lines = [
        "# Architectures", "",
        f"What `mudsc-merge explain` derives and proves of torchvision {version}, one network a family, and of the",
        "networks in `scripts/example_networks.py`, with random weights. Made by", "",
        f"    {command} --out docs/architectures.md", "",
        "*Hidden units* are produced by one layer and read by another; *free* ones can be permuted, *pinned* ones",
        f"keep their place. *Change* is max |Δ| / max |output| when {proof} are permuted at random,",
        "*control* the same with one parameter axis left out: far above the change, or the proof would be blind. Both",
        "are in float64; of two exports the worse figure stands. Networks that take any size ran on images of 64 × 64",
        "to save time. Where a proof failed, the units of the groups that it named count as pinned.", "",
        "*Recovered*: a copy with all groups permuted at random was aligned to the network by weights alone",
        "(`iterations.start: propagate`) and averaged with it; *exactly* means that this gave back every parameter and",
        "buffer of the network, bit for bit.", "",
        ROW.format("network", "export", "input", "groups", "hidden units", "free", "free, %", "change", "control",
                   "recovered", "pinned, and why"),
        ROW.format(*["---"] * 3, *["---:"] * 6, *["---"] * 2),
    ]
    for tried in attempts.values():
        lines += rows(tried)
    if shares:
        lines += ["", f"Mean share of free units: **{100 * sum(shares) / len(shares):.2f} %** over {len(shares)} of "
                      f"{len(attempts)} networks (of the better export where they differ)."]
    lines += ["", "## What failed", ""]
    failures = [f"- {a.model}, {a.export}: " + ("" if a.exported else "TorchScript could not export it: ") + a.error
                for a in every if a.error]
    lines += failures or [f"Nothing: all {len(every)} exports were made, their groups proved, and every permutation "
                          "recovered."]
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
    names = args.models.split(",") if args.models else [
        m for m in MODELS if m in example_networks.NETWORKS or hasattr(torchvision.models, m)]
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
                said = "proved and recovered" if a.proved else f"FAILED: {a.error}"
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
