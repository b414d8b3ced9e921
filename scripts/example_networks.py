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


class MixerBlock(nn.Module):
    """A hidden layer along the patches, then one along the channels."""

    def __init__(self, patches: int, width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.patches = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))
        self.norm2 = nn.LayerNorm(width)
        self.channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer: patches keep their places, all else moves."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 4, 4)
        self.blocks = nn.Sequential(*[MixerBlock(64, 64) for _ in range(3)])
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(1))


class SuperResolution(nn.Module):
    """Grouped and depthwise convolutions with channel shuffle, squeeze-and-excite, and pixel shuffle at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.expand = nn.Conv2d(32, 64, 1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.reduce = nn.Conv2d(64, 32, 1, groups=4)
        self.squeeze = nn.Conv2d(32, 8, 1)
        self.excite = nn.Conv2d(8, 32, 1)
        self.grow = nn.Conv2d(32, 64, 3, padding=1)
        self.output = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(self.norm(self.expand(x)))
        y = y.reshape(y.shape[0], 4, 16, y.shape[2], y.shape[3]).transpose(1, 2).flatten(1, 2)
        y = self.reduce(self.depthwise(y))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean([2, 3], keepdim=True)))))
        return self.output(torch.relu(nn.functional.pixel_shuffle(self.grow(x + y), 2)))


class RmsNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class DecoderBlock(nn.Module):
    """Rotary positions, two heads of queries for each head of keys and values, a causal mask; SwiGLU."""

    def __init__(self, width: int, heads: int, shared: int, length: int):
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, shared * self.size, bias=False)
        self.v = nn.Linear(width, shared * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)
        rates = 10000 ** (-torch.arange(0, self.size, 2).float() / self.size)
        angles = torch.outer(torch.arange(length).float(), rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1))

    def rotated(self, x):
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x):
        batch, length, width = x.shape
        y = self.norm1(x)
        q = self.rotated(self.q(y).view(batch, length, self.heads, self.size).transpose(1, 2))
        k = self.rotated(self.k(y).view(batch, length, self.shared, self.size).transpose(1, 2))
        v = self.v(y).view(batch, length, self.shared, self.size).transpose(1, 2)
        k = k.repeat_interleave(self.heads // self.shared, 1)
        v = v.repeat_interleave(self.heads // self.shared, 1)
        scores = torch.softmax(q @ k.transpose(-2, -1) / self.size ** 0.5 + self.mask, -1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(batch, length, width))
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class LanguageModel(nn.Module):
    """Decoder with RMS norm, whose embedding is its output layer as well."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(100, 64)
        self.blocks = nn.ModuleList([DecoderBlock(64, 4, 2, 16) for _ in range(2)])
        self.norm = RmsNorm(64)

    def forward(self, tokens):
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(self.norm(x), self.tokens.weight)


class TwoInputs(nn.Module):
    """An image whose channels a vector scales and shifts; two outputs, one of products of both."""

    def __init__(self):
        super().__init__()
        self.image1 = nn.Conv2d(3, 32, 3, 2, 1)
        self.image2 = nn.Conv2d(32, 64, 3, 2, 1)
        self.vector = nn.Linear(10, 48)
        self.film = nn.Linear(48, 128)
        self.output = nn.Linear(112, 10)
        self.products = nn.Bilinear(64, 48, 6)

    def forward(self, image, vector):
        image = torch.relu(self.image2(torch.relu(self.image1(image))))
        vector = torch.tanh(self.vector(vector))
        scale, shift = self.film(vector).unsqueeze(2).chunk(2, 1)
        image = (image.flatten(2) * (1 + scale) + shift).mean(2)
        return self.output(torch.cat([image, vector], 1)), self.products(image, vector)


class Conv3d(nn.Module):
    """A U-Net of one level for volumes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv3d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm3d(16)
        self.down = nn.Conv3d(16, 32, 3, 2, 1)
        self.up = nn.ConvTranspose3d(32, 16, 2, 2)
        self.output = nn.Conv3d(32, 2, 1)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.output(torch.cat([x, torch.relu(self.up(torch.relu(self.down(x))))], 1))


class Segmentation(nn.Module):
    """Dilated convolutions side by side (ASPP) with a pooled one; the classes of the pixels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.norm = nn.BatchNorm2d(32)
        self.branches = nn.ModuleList([nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 3, padding=2, dilation=2),
                                       nn.Conv2d(32, 16, 3, padding=4, dilation=4)])
        self.pooled = nn.Conv2d(32, 16, 1)
        self.project = nn.Conv2d(64, 32, 1)
        self.classifier = nn.Conv2d(32, 5, 1)

    def forward(self, x):
        h = torch.relu(self.norm(self.stem(x)))
        parts = []
        for branch in self.branches:
            parts.append(torch.relu(branch(h)))
        pooled = torch.relu(self.pooled(nn.functional.adaptive_avg_pool2d(h, 1)))
        parts.append(pooled.expand(-1, -1, h.shape[2], h.shape[3]))
        h = self.classifier(torch.relu(self.project(torch.cat(parts, 1))))
        h = nn.functional.interpolate(h, size=x.shape[2:], mode="bilinear", align_corners=False)
        return h.argmax(1)


class StateSpace(nn.Module):
    """A selective state space (Mamba) with a depthwise convolution, step by step."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.norm = RmsNorm(32)
        self.project = nn.Linear(32, 128)
        self.convolve = nn.Conv1d(64, 64, 4, padding=3, groups=64)
        self.select = nn.Linear(64, 64 + 2 * 8)
        self.decay = nn.Parameter(torch.rand(64, 8))
        self.skip = nn.Parameter(torch.ones(64))
        self.out = nn.Linear(64, 32)
        self.head = nn.Linear(32, 6)

    def forward(self, x):
        x = self.embed(x)
        u, gate = self.project(self.norm(x)).chunk(2, -1)
        u = nn.functional.silu(self.convolve(u.transpose(1, 2))[:, :, :x.shape[1]].transpose(1, 2))
        step, write, read = self.select(u).split([64, 8, 8], -1)
        step = nn.functional.softplus(step)
        state = torch.zeros(x.shape[0], 64, 8, dtype=x.dtype)
        outputs = []
        for t in range(x.shape[1]):
            state = state * torch.exp(-step[:, t].unsqueeze(2) * self.decay)
            state = state + (step[:, t] * u[:, t]).unsqueeze(2) * write[:, t].unsqueeze(1)
            outputs.append((state * read[:, t].unsqueeze(1)).sum(2) + u[:, t] * self.skip)
        return self.head((x + self.out(torch.stack(outputs, 1) * nn.functional.silu(gate))).mean(1))


class Perceiver(nn.Module):
    """Learned queries that read the input across, then linear attention among themselves."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, 64))
        self.norm = nn.LayerNorm(12)
        self.q = nn.Linear(64, 64)
        self.kv = nn.Linear(12, 128)
        self.out = nn.Linear(64, 64)
        self.features = nn.Linear(64, 64, bias=False)
        self.values = nn.Linear(64, 32)
        self.mix = nn.Linear(32, 64)
        self.head = nn.Linear(64, 7)

    def forward(self, x):
        batch = x.shape[0]
        z = self.latents.expand(batch, -1, -1)
        k, v = self.kv(self.norm(x)).chunk(2, -1)
        q = self.q(z).view(batch, 6, 4, 16).transpose(1, 2)
        k = k.reshape(batch, -1, 4, 16).transpose(1, 2)
        v = v.reshape(batch, -1, 4, 16).transpose(1, 2)
        y = torch.softmax(q @ k.transpose(-2, -1) / 4, -1) @ v
        z = z + self.out(y.transpose(1, 2).reshape(batch, 6, 64))
        k = nn.functional.elu(self.features(z).view(batch, 6, 4, 16).transpose(1, 2)) + 1
        v = self.values(z).view(batch, 6, 4, 8).transpose(1, 2)
        y = k @ (k.transpose(-2, -1) @ v) / (k @ k.sum(2).unsqueeze(3))
        z = z + self.mix(y.transpose(1, 2).reshape(batch, 6, 32))
        return self.head(z.mean(1))


class GraphConvolution(nn.Module):
    """Nodes with features, and their adjacency as a second input; attention over the nodes at the end."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 32)
        self.second = nn.Linear(32, 32)
        self.attend = nn.Linear(32, 1)
        self.head = nn.Linear(32, 4)

    def forward(self, nodes, adjacency):
        edges = torch.softmax(adjacency, -1)
        h = torch.relu(torch.matmul(edges, self.first(nodes)))
        h = h + torch.relu(torch.bmm(edges, self.second(h)))
        return self.head((torch.softmax(self.attend(h), 1) * h).sum(1))


# Name -> (class, the shapes of the inputs as mudsc-merge's --input takes them)
NETWORKS = {
    "mlp": (Mlp, "4x64"),
    "conv1d": (Conv1d, "4x1x64"),
    "text_transformer": (TextTransformer, "i64:4x16"),
    "unet": (UNet, "2x3x32x32"),
    "encoder": (Encoder, "2x3x32x32"),
    "mixer": (Mixer, "2x3x32x32"),
    "super_resolution": (SuperResolution, "2x3x16x16"),
    "language_model": (LanguageModel, "i64:2x16"),
    "two_inputs": (TwoInputs, "2x3x16x16 2x10"),
    "conv3d": (Conv3d, "2x1x8x8x8"),
    "segmentation": (Segmentation, "2x3x32x32"),
    "state_space": (StateSpace, "2x10x12"),
    "perceiver": (Perceiver, "2x20x12"),
    "graph_convolution": (GraphConvolution, "2x10x6 2x10x10"),
}


def example_inputs(shapes: str) -> tuple:
    """Random inputs of shapes such as "2x3x32x32 2x10", or "i64:4x16" for integers below 100."""
    inputs = []
    for shape in shapes.split():
        kind, _, sizes = shape.rpartition(":")
        size = [int(number) for number in sizes.split("x")]
        inputs.append(torch.randint(0, 100, size) if kind == "i64" else torch.randn(size))
    return tuple(inputs)


def export(name: str, archive, trace: bool, seed: int = 0) -> None:
    """Writes a network of NETWORKS as a TorchScript archive, with random weights."""
    torch.manual_seed(seed)
    network, shapes = NETWORKS[name]
    network = network().eval()
    if trace:
        with torch.enable_grad():  # attention keeps to plain operators
            module = torch.jit.trace(network, example_inputs(shapes), check_trace=False)
    else:
        module = torch.jit.script(network)
    module.save(str(archive))
