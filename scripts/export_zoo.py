#!/usr/bin/env python3
"""Makes published checkpoints, once downloaded, ready for modelgif-dist.

    scripts/export_zoo.py configs/modelgif-dist/taskonomy.json build/taskonomy.json --affinities all_affinities.pkl
    scripts/export_zoo.py configs/modelgif-dist/sac.json build/sac.json

The configuration names each model's checkpoint as `weights` and its network as `script`; edit the paths, or put the
downloads where it looks for them. Networks that are not there are written as TorchScript archives:

- taskonomy_encoder, taskonomy_encoder_normalised: the encoders of Taskonomy's tasks
  (https://github.com/alexsax/visual-prior, branch networks: assets/pytorch/TASK_encoder-HASH.pth); the second ends with
  a group norm, as ModelGiF's authors use it of tasks without a decoder;
- any classifier of torchvision with ten classes: SAC's victim, copies and independent networks (linked from
  https://github.com/guanjiyang/SAC; folders model, finetune_model, finetune_10, adv_train, Fine-Pruning).

A checkpoint may carry a hash behind its name. One that is not there is left out, with a message; so are groups that
become empty. Pruned networks that were saved whole are rewritten as weights, masks applied: nothing in the file is run
but what builds PyTorch's own modules. Without any checkpoint, or without the victim, nothing is written.

The second file is the configuration of what was found; run `modelgif-dist --config` on it. With --affinities
(Taskonomy's results/affinities/all_affinities.pkl) its task becomes relatedness. Needs PyTorch, and torchvision for
SAC.
"""
import argparse
import collections
import io
import json
import pathlib
import pickle
import re
import sys
import zipfile

# Taskonomy's affinities know tasks by older names than its checkpoints.
AFFINITY_NAMES = {
    "autoencoding": "autoencoder", "class_object": "class_1000", "class_scene": "class_places", "denoising": "denoise",
    "depth_euclidean": "rgb2mist", "depth_zbuffer": "rgb2depth", "edge_occlusion": "edge3d", "edge_texture": "edge2d",
    "inpainting": "inpainting_whole", "keypoints2d": "keypoint2d", "keypoints3d": "keypoint3d", "normal": "rgb2sfnorm",
    "reshading": "reshade", "segment_semantic": "segmentsemantic_rb", "segment_unsup25d": "segment25d",
    "segment_unsup2d": "segment2d", "vanishing_point": "vanishing_point_well_defined"}

# What a pickle of NumPy's numbers calls.
NUMBERS = {("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
           ("_codecs", "encode")}


def fail(message: str) -> None:
    print(f"export_zoo.py: error: {message}", file=sys.stderr)
    sys.exit(3)


def taskonomy_encoder(normalise: bool):
    """A ResNet-50 whose first two stages halve the image, in their *last* block, and a convolution to eight maps of a
    16th of the image's side."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * width)
            self.downsample = nn.Sequential()
            if inputs != 4 * width:
                self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))
            elif stride > 1:
                self.downsample = nn.Sequential(nn.MaxPool2d(1, stride))

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))

    def stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(*[Block(inputs if i == 0 else 4 * width, width, stride if i == blocks - 1 else 1)
                               for i in range(blocks)])

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.layer1 = stage(64, 64, 3, 2)
            self.layer2 = stage(256, 128, 4, 2)
            self.layer3 = stage(512, 256, 6, 1)
            self.layer4 = stage(1024, 512, 3, 1)
            self.compress1 = nn.Conv2d(2048, 8, 3, padding=1, bias=False)
            self.compress_bn = nn.BatchNorm2d(8)
            self.groupnorm = nn.GroupNorm(8, 8, affine=False) if normalise else nn.Identity()

        def forward(self, x):
            x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.groupnorm(torch.relu(self.compress_bn(self.compress1(x))))

    return Encoder()


def network(name: str):
    if name in ("taskonomy_encoder", "taskonomy_encoder_normalised"):
        return taskonomy_encoder(name.endswith("normalised"))
    try:
        import torchvision
    except ImportError as error:
        fail(f"{error} (on Debian: apt-get install python3-torchvision)")
    if not hasattr(torchvision.models, name):
        fail(f"{name}.pt is not there, and torchvision has no network {name}")
    return getattr(torchvision.models, name)(num_classes=10)


class Inert:
    """Stands for whatever else a pickle names (hooks, handles): it holds nothing and does nothing."""

    def __init__(self, *_, **__):
        pass

    def ignore(self, *_) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = ignore


def rebuilt_tensor(values, offset, size, stride, *_):
    import torch
    return torch.as_strided(values, size, stride, offset)


def rebuilt_parameter(tensor, *_):
    import torch
    return torch.nn.Parameter(tensor, requires_grad=False)


class ModuleReader(pickle.Unpickler):
    """Builds PyTorch's own modules and tensors from a file of torch.save; no other name that its pickle calls has a
    meaning. (Not torch.load: in 1.13 it takes no unpickler of one's own, and runs what a pickle says.)"""

    KNOWN = {("collections", "OrderedDict"): collections.OrderedDict, ("builtins", "set"): set,
             ("torch._utils", "_rebuild_tensor_v2"): rebuilt_tensor,
             ("torch._utils", "_rebuild_parameter"): rebuilt_parameter}
    TYPES = {"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "LongStorage": "int64"}

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.folder = next(name for name in archive.namelist() if name.endswith("/data.pkl"))[:-len("data.pkl")]
        super().__init__(io.BytesIO(archive.read(self.folder + "data.pkl")))

    def find_class(self, module: str, name: str):
        import torch
        if module == "torch" and name in self.TYPES:
            return self.TYPES[name]
        if "." not in name and module.startswith(("torch.nn.modules.", "torchvision.models.")):
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, torch.nn.Module):
                return found
        return self.KNOWN.get((module, name), Inert)

    def persistent_load(self, saved):
        import torch
        _, kind, key, *_ = saved
        raw = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        kind = getattr(torch, kind)
        return torch.frombuffer(raw, dtype=kind) if raw else torch.empty(0, dtype=kind)


def holds_network(path: pathlib.Path) -> bool:
    """True for a file that names modules beside tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        pickles = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
    return any(b"torch.nn.modules" in each or b"torchvision.models" in each for each in pickles)


def network_weights(path: pathlib.Path) -> dict:
    """Parameters and buffers of a network that was saved whole, masks of torch.nn.utils.prune applied."""
    try:
        with zipfile.ZipFile(path) as archive:
            module = ModuleReader(archive).load()
        weights = {name: value.detach() for name, value in [*module.named_parameters(), *module.named_buffers()]}
    except (pickle.UnpicklingError, RuntimeError, AttributeError, TypeError, KeyError, ValueError) as error:
        fail(f"{path}: holds no network that could be read: {error}")
    for name in [key[:-len("_mask")] for key in weights if key.endswith("_mask")]:
        weights[name] = weights.pop(name + "_orig") * weights.pop(name + "_mask")
    return collections.OrderedDict(weights)


def checkpoint(path: pathlib.Path) -> pathlib.Path | None:
    """The file, or the only one of its name with a hash behind."""
    if path.is_file():
        return path
    others = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")) if path.parent.is_dir() else []
    return others[0] if len(others) == 1 else None


def read_affinities(path: pathlib.Path, names: list[str]) -> list[list[float]]:
    """Taskonomy's pickle of {"SOURCE__TARGET": number}: a row a source, a column a target."""
    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str):
            if (module, name) in NUMBERS:
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f"{module}.{name} is no number")

    known = {name: AFFINITY_NAMES.get(name, name) for name in names}
    try:
        with open(path, "rb") as file:
            values = Reader(file, encoding="latin1").load()
        return [[float(values[f"{known[a]}__{known[b]}"]) for b in names] for a in names]
    except (OSError, pickle.UnpicklingError, TypeError) as error:
        fail(f"{path}: {error}")
    except KeyError as error:
        fail(f"{path}: has no affinity {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=pathlib.Path, help="configuration of modelgif-dist with the paths")
    parser.add_argument("out", type=pathlib.Path, help="the configuration to write")
    parser.add_argument("--affinities", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    text = re.sub(r"^\s*//.*$", "", options.config.read_text(), flags=re.MULTILINE)
    config = json.loads(text)
    start = options.config.resolve().parent

    found, scripts = [], set()
    for model in config["models"]:
        weights = checkpoint((start / model["weights"]).resolve())
        if weights is None:
            print(f"left out {model['name']}: no {(start / model['weights']).resolve()}", file=sys.stderr)
            continue
        script = (start / model["script"]).resolve()
        scripts.add(script)
        found.append({**model, "script": str(script), "weights": str(weights.resolve())})
    names = {model["name"] for model in found}
    task = config["task"]
    if not found or "victim" in task and task["victim"] not in names:
        why = "without the victim" if found else "none of the checkpoints is there"
        print(f"skipped: {why}; download them and edit the paths in {options.config}")
        return 0
    try:
        import torch
    except ImportError as error:
        fail(f"{error} (on Debian: apt-get install python3-torch)")

    for script in sorted(scripts):
        if not script.exists():
            script.parent.mkdir(parents=True, exist_ok=True)
            torch.jit.script(network(script.stem).eval()).save(str(script))
            print(f"wrote {script}", file=sys.stderr)
    for model in found:
        weights = pathlib.Path(model["weights"])
        if holds_network(weights):
            plain = pathlib.Path(model["script"]).parent / f"{weights.stem}-weights.pth"
            torch.save(network_weights(weights), plain)
            model["weights"] = str(plain)

    config["models"] = found
    if "groups" in task:
        groups = [{**group, "models": [name for name in group["models"] if name in names]} for group in task["groups"]]
        task["groups"] = [group for group in groups if group["models"]]
    for key in ("independents", "surrogates"):
        if key in task:
            task[key] = [name for name in task[key] if name in names]
    if options.affinities:
        config["task"] = {"type": "relatedness",
                          "affinity": read_affinities(options.affinities, [model["name"] for model in found])}
    for place, key in ((config, "out"), (config, "cache"), (config["reference"]["data"], "path")):
        if key in place:
            place[key] = str((start / place[key]).resolve())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(config, indent=1))
    print(f"{len(found)} models: modelgif-dist --config {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
