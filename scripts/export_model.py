#!/usr/bin/env python3
"""Exports a torchvision classification model as a TorchScript archive.

    scripts/export_model.py resnet50 resnet50.pt                  # scripted, random weights
    scripts/export_model.py vit_b_16 vit.pt --trace --seed 1      # traced
    scripts/export_model.py resnet18 r18.pt --weights r18.pth     # weights from a torch.save file
    scripts/export_model.py --list

Needs torchvision (Debian: python3-torchvision). Pretrained weights are not downloaded: give a file that you have.
"""
import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a name that --list shows")
    parser.add_argument("out", nargs="?", help="the archive to write")
    parser.add_argument("--trace", action="store_true", help="trace instead of script")
    parser.add_argument("--weights", help="state dict (torch.save) to load")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--input", default="2x3x224x224", help="shape to trace with (default: %(default)s)")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="argument of the model's constructor, such as num_classes=10; repeatable")
    parser.add_argument("--list", action="store_true", help="list the models that can be exported")
    args = parser.parse_args(arguments)
    try:
        import torch
        import torchvision
    except ImportError as error:
        print(f"export_model.py: error: {error} (on Debian: apt-get install python3-torchvision)", file=sys.stderr)
        return 3

    models = sorted(name for name, value in vars(torchvision.models).items()
                    if name.islower() and not name.startswith("get_") and not name.startswith("list_")
                    and callable(value))
    if args.list:
        print("\n".join(models))
        return 0
    if not args.model or not args.out:
        parser.error("give a model and the archive to write, or --list")
    if args.model not in models:
        print(f"export_model.py: error: torchvision has no model {args.model} (see --list)", file=sys.stderr)
        return 2

    options = {}
    for item in args.option:
        key, _, value = item.partition("=")
        options[key] = int(value) if value.lstrip("-").isdigit() else value
    if args.model in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", True)
    torch.manual_seed(args.seed)
    network = getattr(torchvision.models, args.model)(**options).eval()
    if args.weights:
        network.load_state_dict(torch.load(args.weights, map_location="cpu"))
    if args.trace:
        shape = [int(size) for size in args.input.split("x")]
        with torch.enable_grad():  # attention keeps to plain operators
            archive = torch.jit.trace(network, torch.randn(shape), check_trace=False)
    else:
        archive = torch.jit.script(network)
    archive.save(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
