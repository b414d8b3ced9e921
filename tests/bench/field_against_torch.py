"""Times a plain PyTorch computation of field_bench's field (batch 2, autograd.grad to the inputs), and prints the ratios."""

import json
import pathlib
import struct
import sys
import time


def read(path, name, numpy):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8:8 + size])[name]
    begin, end = entry["data_offsets"]
    return numpy.frombuffer(data[8 + size + begin:8 + size + end], numpy.float32).reshape(entry["shape"]).copy()


def main():
    folder = pathlib.Path(sys.argv[1])
    try:
        import numpy
        import torch
    except ImportError:
        print("PyTorch is not installed for this Python: no comparison (see WEIGHTSMITH_BENCH_PYTHON).")
        return
    torch.set_num_threads(1)
    model = torch.jit.load(str(folder / "resnet20.pt")).eval()
    inputs = torch.from_numpy(read(folder / "inputs.safetensors", "inputs", numpy))
    wanted = torch.from_numpy(read(folder / "field.safetensors", "field", numpy))
    steps = wanted.shape[1]
    nodes, widths = numpy.polynomial.legendre.leggauss(steps)
    alphas, widths = (1 + nodes) / 2, widths / 2

    def field():
        parts = []
        for begin in range(0, len(inputs), 2):
            x = inputs[begin:begin + 2]
            target = model(x).argmax(1)
            points = torch.cat([float(a) * x for a in alphas]).requires_grad_()
            output = model(points).gather(1, target.repeat(steps).unsqueeze(1))
            gradient = torch.autograd.grad(output.sum(), points)[0].view(steps, len(x), -1)
            scaled = gradient * torch.from_numpy(widths).view(-1, 1, 1)
            parts.append((scaled.cumsum(0) * x.flatten(1)).transpose(0, 1))
        return torch.cat(parts)

    best = float("inf")
    for _ in range(4):  # the first runs specialise the graph
        start = time.perf_counter()
        result = field()
        best = min(best, time.perf_counter() - start)
    error = float((result - wanted).norm() / wanted.norm())
    print(f"PyTorch {torch.__version__}, batch 2: {best * 1e3:.0f} ms; relative difference {error:.1e}")
    for what, seconds in json.loads((folder / "field.json").read_text()).items():
        print(f"  {what:24} {best / seconds:.2f} x as fast")


main()
