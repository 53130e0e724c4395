"""Ten training steps beside PyTorch's in float64, from the same weights, on the same batches."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij

torch = pytest.importorskip("torch", reason="needs pip install '.[benchmark]'")

STEPS, BATCH, CLASSES = 10, 8, 10
CHANNELS = [3, 4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32]  # VGG's at width 1/16
STRIDE_2 = (3, 5, 8, 11)
TAPS = (7, 9, 11, 13)


class Network(torch.nn.Module):
    """The paper's network and branches (III, IV-B), with learned fusion."""

    def __init__(self, weights):
        super().__init__()
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, 3, 2 if number in STRIDE_2 else 1, 1, bias=False)
            for number, (a, b) in enumerate(pairwise(CHANNELS), start=1)
        )
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(b) for b in CHANNELS[1:])
        self.layers = torch.nn.ModuleDict(
            {str(channels): torch.nn.Linear(channels, CLASSES) for channels in (16, 32)}
        )
        self.weights = torch.nn.Parameter(torch.tensor(weights))

    def forward(self, x):
        branches = []
        pairs = zip(self.convolutions, self.norms, strict=True)
        for number, (convolution, norm) in enumerate(pairs, start=1):
            x = torch.relu(norm(convolution(x)))
            if number in TAPS:
                branches.append(self.layers[str(x.shape[1])](x.mean((2, 3))))
        weights = self.weights if self.weights.ndim == 2 else self.weights[:, None]
        return (torch.stack(branches, 1) * weights).sum(1), branches

    def beside(self, params):
        """Pairs our parameters, in PyTorch's layout, with the network's own."""
        for number, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True), start=1
        ):
            ours = params["backbone"][f"conv{number}"]
            yield np.transpose(ours["kernel"], (3, 2, 0, 1)), convolution.weight
            yield np.array(ours["norm"]["scale"]), norm.weight
            yield np.array(ours["norm"]["bias"]), norm.bias
        for channels, layer in self.layers.items():
            ours = params[f"fully_connected_channels_{channels}"]
            yield np.transpose(ours["kernel"]), layer.weight
            yield np.array(ours["bias"]), layer.bias
        yield np.array(params["fusion"]["weights"]), self.weights


@pytest.fixture
def in_float64(monkeypatch):
    """JAX in float64, also where the library asks for float32: it rounds as PyTorch does."""
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(("method", "auxiliary_loss"), [("S1", 0.0), ("S3", 1.0)])
def test_ten_steps_are_pytorch_s(method, auxiliary_loss):
    model = ij.build(method, CLASSES, width=1 / 16)
    float64 = model.backbone.clone(dtype=jnp.float64, convolution="xla")
    model = model.clone(backbone=float64)
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(STEPS, drop_after=0.5))
    step = jax.jit(partial(ij.train_step, model, optimizer, auxiliary_loss=auxiliary_loss))
    state = ij.create_state(model, optimizer, jax.random.key(0), (32, 32, 3))
    state = jax.tree.map(lambda leaf: leaf if leaf.dtype == int else leaf.astype(float), state)
    start = jax.tree.map(np.array, state.params)

    network = Network(start["fusion"]["weights"]).double()
    for ours, parameter in network.beside(start):
        parameter.data = torch.tensor(ours)
    sgd = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.95, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [STEPS // 2], gamma=0.1)
    cross_entropy = torch.nn.functional.cross_entropy

    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        images = generator.normal(size=(BATCH, 32, 32, 3))
        labels = generator.integers(0, CLASSES, BATCH)
        state, metrics = step(state, images, labels)
        logits, branches = network(torch.tensor(images.transpose(0, 3, 1, 2)))
        targets = torch.tensor(labels)
        loss = cross_entropy(logits, targets)
        auxiliary = sum(cross_entropy(each, targets) for each in branches[:-1])
        sgd.zero_grad()
        (loss + auxiliary_loss * auxiliary).backward()
        sgd.step()
        schedule.step()
        np.testing.assert_allclose(metrics.loss_sum / BATCH, loss.item(), rtol=1e-9)

    pairs = zip(network.beside(start), network.beside(state.params), strict=True)
    for (before, _), (after, parameter) in pairs:
        exact = parameter.detach().numpy()
        # Of all ten updates together. Ours and PyTorch's differ by 1e-12.
        assert np.linalg.norm(after - exact) < 1e-9 * np.linalg.norm(exact - before)
    for number, norm in enumerate(network.norms, start=1):
        ours = state.batch_stats["backbone"][f"conv{number}"]["norm"]
        np.testing.assert_allclose(ours["mean"], norm.running_mean, rtol=1e-9, atol=1e-12)
        # A batch's variance of n values is over n - 1 in PyTorch's running one, over n in ours.
        count = BATCH * (32 // 2 ** sum(number >= each for each in STRIDE_2)) ** 2
        of_start = 0.9**STEPS  # what is left of the first value, one
        exact = (norm.running_var.numpy() - of_start) * (count - 1) / count + of_start
        np.testing.assert_allclose(ours["var"], exact, rtol=1e-9)
