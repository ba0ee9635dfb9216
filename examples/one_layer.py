"""One quantizer in a small network of your own: classify 8x8 digits through 16 discrete tokens.

python examples/one_layer.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import straightvq as svq


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 2, stride=2))
        self.quantizer = svq.presets.straight(dim=16, codebook_size=64, channel_dim=1)  # the added line
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 4 * 4, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, svq.QuantizerOutput]:
        out = self.quantizer(self.encoder(x))
        return self.head(out.quantized), out


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled digits if it is installed, else random pictures of ten patterns."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        labels = torch.randint(10, (1797,))
        return torch.rand(10, 1, 8, 8)[labels] + 0.3 * torch.randn(1797, 1, 8, 8), labels
    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)


def main() -> None:
    torch.manual_seed(0)
    images, labels = digits()
    net = Net()
    optimizer = torch.optim.AdamW(svq.parameter_groups(net, lr=3e-3, weight_decay=0.01))
    for step in range(50):
        batch = torch.randint(1500, (128,))
        logits, out = net(images[batch])
        loss = F.cross_entropy(logits, labels[batch]) + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}, codes in this batch {out.indices.unique().numel()}")
    net.eval()
    logits, out = net(images[1500:])
    accuracy = (logits.argmax(1) == labels[1500:]).float().mean().item()
    print(f"test accuracy {accuracy:.3f} through {out.indices[0].numel()} tokens per picture")


if __name__ == "__main__":
    main()
