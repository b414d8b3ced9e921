"""Small networks of kinds that torchvision's classification families do not cover, for architectures.py."""
import torch
from torch import nn


class Mlp(nn.Module):
    """One hidden layer."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 256)
        self.output = nn.Linear(256, 10)

    def forward(self, x):
        return self.output(torch.relu(self.hidden(x)))


class Conv1d(nn.Module):
    """A signal classifier: strided one-dimensional convolutions with batch norm."""

    def __init__(self):
        super().__init__()
        layers, width = [], 1
        for out, stride in ((32, 1), (64, 2), (64, 2), (128, 2)):
            layers += [nn.Conv1d(width, out, 5, stride, 2, bias=False), nn.BatchNorm1d(out), nn.ReLU()]
            width = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x):
        return self.classifier(self.features(x).mean(2))


class TextTransformer(nn.Module):
    """nn.TransformerEncoder over embedded tokens and positions, the mean of the tokens classified."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(100, 64)
        self.positions = nn.Parameter(torch.randn(1, 16, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(64))
        self.classifier = nn.Linear(64, 10)

    def forward(self, tokens):
        return self.classifier(self.encoder(self.tokens(tokens) + self.positions).mean(1))


def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """An autoencoder with skip connections: the decoder reads the encoder's maps beside its own."""

    def __init__(self):
        super().__init__()
        self.down1 = double_convolution(3, 32)
        self.down2 = double_convolution(32, 64)
        self.bottom = double_convolution(64, 128)
        self.up2 = nn.ConvTranspose2d(128, 64, 2, 2)
        self.join2 = double_convolution(128, 64)
        self.up1 = nn.ConvTranspose2d(64, 32, 2, 2)
        self.join1 = double_convolution(64, 32)
        self.output = nn.Conv2d(32, 3, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        bottom = self.bottom(nn.functional.max_pool2d(second, 2))
        x = self.join2(torch.cat([self.up2(bottom), second], 1))
        return self.output(self.join1(torch.cat([self.up1(x), first], 1)))


class Encoder(nn.Module):
    """No head: the units of the last layer are the outputs, and must stay."""

    def __init__(self):
        super().__init__()
        self.block1 = double_convolution(3, 32)
        self.block2 = double_convolution(32, 64)
        self.project = nn.Conv2d(64, 128, 3, 2, 1)

    def forward(self, x):
        return self.project(self.block2(nn.functional.max_pool2d(self.block1(x), 2)))


# Name -> (class, shape of the input as mudsc-merge's --input takes it)
NETWORKS = {
    "mlp": (Mlp, "4x64"),
    "conv1d": (Conv1d, "4x1x64"),
    "text_transformer": (TextTransformer, "i64:4x16"),
    "unet": (UNet, "2x3x32x32"),
    "encoder": (Encoder, "2x3x32x32"),
}


def example_input(shape: str) -> torch.Tensor:
    """A random input of a shape such as "2x3x32x32", or "i64:4x16" for integers below 100."""
    kind, _, sizes = shape.rpartition(":")
    size = [int(number) for number in sizes.split("x")]
    return torch.randint(0, 100, size) if kind == "i64" else torch.randn(size)


def export(name: str, archive, trace: bool, seed: int = 0) -> None:
    """Writes a network of NETWORKS as a TorchScript archive, with random weights."""
    torch.manual_seed(seed)
    network, shape = NETWORKS[name]
    network = network().eval()
    if trace:
        with torch.enable_grad():  # attention keeps to plain operators
            module = torch.jit.trace(network, example_input(shape), check_trace=False)
    else:
        module = torch.jit.script(network)
    module.save(str(archive))
