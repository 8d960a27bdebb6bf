"""What cannot be copied, trained or exported is refused by its name, before a run begins."""

import sys
import threading

import pytest
import torch
from torch import nn

from glprune.errors import ModelError
from glprune.model.diagnostics import check_layers, check_trainable, copied

ROWS = torch.ones(4, 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def identity(output):
    return output


class NoGrad(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Inference(Net):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


class TurnsOff(Net):
    def forward(self, x):
        torch.set_grad_enabled(False)
        return super().forward(x)


class Detaches(Net):
    def forward(self, x):
        return super().forward(x).detach()


class Numpy(Net):
    def forward(self, x):
        return torch.from_numpy(super().forward(x).detach().numpy())


class OnlyInTraining(Net):
    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            return super().forward(x)


@pytest.mark.parametrize("kind", [NoGrad, Inference, TurnsOff, Detaches, Numpy, OnlyInTraining])
def test_an_output_without_a_gradient_is_refused(kind):
    with pytest.raises(ModelError, match="The network's output has no gradient"):
        check_trainable(kind().eval(), (ROWS,), identity)
    assert torch.is_grad_enabled()


class Keeps(Net):
    def forward(self, x):
        self.last = self.a(x)
        return self.b(self.last)


def with_attribute(make):
    network = Net()
    network.a.extra = make(network)
    return network


def exiting(network):
    class Exits:
        def __deepcopy__(self, memo):
            raise SystemExit(0)

    return Exits()


@pytest.mark.parametrize(
    ("network", "fragment"),
    [
        (lambda: with_attribute(lambda n: threading.Lock()), "attribute 'extra' of layer 'a' forbids it (TypeError: cannot pickle '_thread.lock'"),
        (lambda: with_attribute(lambda n: sys.stderr), "attribute 'extra' of layer 'a' forbids it (TypeError: cannot pickle '"),
        (lambda: with_attribute(lambda n: (i for i in "ab")), "cannot pickle 'generator'"),
        (lambda: with_attribute(lambda n: threading), "cannot pickle 'module'"),
        (lambda: with_attribute(exiting), "attribute 'extra' of layer 'a' forbids it (SystemExit: 0"),
        (lambda: with_attribute(lambda n: n.a.weight * 2), "attribute 'extra' of layer 'a' keeps a tensor with its gradient"),
        (Keeps, "attribute 'last' of Keeps keeps a tensor with its gradient; keep tensor.detach()"),
    ],
)  # fmt: skip
def test_an_attribute_that_cannot_be_copied_is_named(network, fragment):
    with pytest.raises(ModelError) as caught:
        check_trainable(network().eval(), (ROWS,), identity)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_forward_that_holds_the_original_is_refused():
    network = Net()
    network.forward = lambda x: network.b(network.a(x))
    with pytest.raises(ModelError, match=r"A copy of the network computes with 'a\.weight' of the original"):
        check_trainable(network.eval(), (ROWS,), identity)
    assert all(p.grad is None for p in network.parameters())


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no backward")


class FailsBackward(Net):
    def forward(self, x):
        return Backward.apply(super().forward(x))


def test_a_backward_that_raises_is_one_line():
    with pytest.raises(
        ModelError, match=r"gradient of the network cannot be computed \(ValueError: no backward"
    ):
        check_trainable(FailsBackward().eval(), (ROWS,), identity)


class Sparse(Net):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(5, 1)

    def forward(self, x):
        return super().forward(nn.functional.embedding(x, self.e.weight, sparse=True)[:, :, 0])


def test_a_sparse_gradient_is_named():
    with pytest.raises(ModelError, match=r"The gradient of 'e\.weight' is sparse"):
        check_trainable(Sparse().eval(), (torch.ones(4, 3, dtype=torch.int64),), identity)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_a_batch_norm_without_running_statistics_is_named(kind):
    network = nn.Sequential(nn.Linear(3, 5), kind(5, track_running_stats=False), nn.Linear(5, 1))
    with pytest.raises(ModelError, match=f"Layer '1' \\({kind.__name__}\\) has no running statistics"):
        check_layers(network)


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_weights_scripts_and_extra_states_are_named():
    class Extra(Net):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    network = Net()
    network.b.to(torch.complex64)
    with pytest.raises(ModelError, match=r"'b\.weight' is complex"):
        check_layers(network)
    with pytest.raises(ModelError, match="'_extra_state' in the network's state is dict"):
        check_layers(Extra())
    with pytest.raises(ModelError, match="scripted by TorchScript"):
        check_layers(torch.jit.script(Net()))


def test_a_plain_network_passes_and_its_copy_is_its_own():
    network = Net().eval()
    check_layers(network)
    check_trainable(network, (ROWS,), identity)
    twin = copied(network)
    assert twin.a.weight is not network.a.weight
    assert all(p.grad is None for p in network.parameters())
