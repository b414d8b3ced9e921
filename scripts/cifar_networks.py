"""Small networks of CIFAR-10 at 16 x 16 pixels, trained with lookaround-train, for the studies beside this.

Nothing but Python's own library is needed: images go from the binary version of CIFAR-10 into safetensors files.
"""
import array
import json
import pathlib
import struct
import sys

from digit_networks import run

PIXELS = 3072
NORMALISATION = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
ARCHITECTURES = {
    "convnet": {"builtin": "convnet", "options": {"width": 16, "channels": 3}},
    "resnet": {"builtin": "resnet20", "options": {"depth": 8, "width": 0.5}},
    "vgg": {"builtin": "vgg11", "options": {"width": 0.125}},
    "vit": {"builtin": "vit", "options": {"image": 16, "patch": 4, "dim": 48, "depth": 2, "heads": 3, "mlp": 96}},
    "mlp": {"builtin": "mlp", "options": {"inputs": 768, "hidden": [128, 64]}},
}


def cifar(folder: pathlib.Path, split: str) -> list[tuple[int, bytes]]:
    """(label, 3072 bytes) of each image; ends the study in peace where the data set is not there."""
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        print(f"skipped: {folder} has no {missing[0]}; give the folder of CIFAR-10's binary version as --cifar")
        sys.exit(0)
    raw = b"".join((folder / name).read_bytes() for name in names)
    return [(raw[at], raw[at + 1:at + 1 + PIXELS]) for at in range(0, len(raw), 1 + PIXELS)]


def write_images(path: pathlib.Path, images: list[tuple[int, bytes]],
                 shape: tuple[int, int, int] = (3, 32, 32)) -> None:
    """A data set of ten classes in the format "tensors"; `shape`: channels, height, width."""
    pixels = b"".join(image for _, image in images)
    labels = array.array("q", [label for label, _ in images])
    header = json.dumps({
        "__metadata__": {"classes": "10"},
        "labels": {"dtype": "I64", "shape": [len(images)], "data_offsets": [0, 8 * len(images)]},
        "images": {"dtype": "U8", "shape": [len(images), *shape],
                   "data_offsets": [8 * len(images), 8 * len(images) + len(pixels)]}}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + labels.tobytes() + pixels)


def data(path: pathlib.Path, resize: int = 16, **more) -> dict:
    return {"format": "tensors", "path": str(path), "resize": resize, **NORMALISATION, **more}


class Trainer:
    """Trains networks into a folder, each once: one that is there and was configured alike is taken as it is."""

    def __init__(self, tools: pathlib.Path, folder: pathlib.Path, epochs: int, test: pathlib.Path, **settings):
        """`settings`: keys of every configuration."""
        self.tools, self.folder, self.epochs, self.test, self.settings = tools, folder, epochs, test, settings
        self.accuracy = {}

    def __call__(self, name: str, model: dict, images: dict, seed: int, epochs: int = 0, lr: float = 0.0,
                 **more) -> pathlib.Path:
        """`model`: a model reference; `more`: further keys of the configuration. Returns the archive."""
        out = self.folder / name
        kind = json.dumps(model)
        config = {
            "model": model, "data": {"train": images, "test": data(self.test)},
            "augmentations": [[{"name": "random_crop", "padding": 2}, "horizontal_flip"]],
            "method": {"type": "sgd"}, "epochs": epochs or self.epochs, "batch_size": 64, "seed": seed,
            "threads": 1, **self.settings, **more}
        # What has no batch norm takes another optimiser.
        if "vit" in kind or "mlp" in kind:
            config["optimizer"] = {"type": "adam", "lr": (lr or 0.1) / 50, "weight_decay": 0}
        else:
            config["optimizer"] = {"lr": lr or 0.1}
        if config["epochs"] < 8:
            config["schedule"] = {"warmup_epochs": 0}
        path = self.folder / f"{name}.json"
        if not ((out / "model.pt").exists() and path.exists() and json.loads(path.read_text()) == config):
            print(f"train {name}", file=sys.stderr)
            path.write_text(json.dumps(config, indent=1))
            run(self.tools, "lookaround-train", "--config", path, "--out", out)
        results = json.loads((out / "results.json").read_text())
        self.accuracy[name] = 100 * results["test"]["accuracy"]
        return out / "model.pt"


def prune(weights: pathlib.Path, out: pathlib.Path, share: float) -> None:
    """Sets the smallest weights (of all matrices and kernels together) to zero: magnitude pruning."""
    raw = weights.read_bytes()
    size = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8:8 + size])
    values = bytearray(raw)
    spans = [(8 + size + entry["data_offsets"][0], 8 + size + entry["data_offsets"][1])
             for name, entry in header.items()
             if name != "__metadata__" and entry["dtype"] == "F32" and len(entry["shape"]) > 1]
    tensors = []
    for begin, end in spans:
        tensors.append(array.array("f", bytes(raw[begin:end])))
    sizes = sorted(abs(value) for tensor in tensors for value in tensor)
    least = sizes[int(share * len(sizes))]
    for (begin, end), tensor in zip(spans, tensors):
        values[begin:end] = array.array("f", [value if abs(value) >= least else 0.0 for value in tensor]).tobytes()
    out.write_bytes(values)
