"""What the trace sees, what the proof decides, and what happens to networks neither was written for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from glprune.errors import ModelError
from glprune.pruning.candidates import find_candidates
from glprune.pruning.planner import plan_units
from glprune.pruning.surgery import ConstantFill, PruningPlan
from glprune.pruning.trace import trace
from glprune.pruning.verification import EquivalenceChecker, random_copy
from tests.architectures import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("one_thread")


def sets_of(network, *inputs, axes=None, **options):
    axes = axes or [-1] * len(inputs)
    names = [f"x{n}" for n in range(len(inputs))]
    return {s.name: s for s in plan_units(network.eval(), inputs, axes, names, **options)}


def readers_of(units):
    return {slot.tensor: slot.unit.tolist() for slot in units.readers}


class Net(nn.Module):
    """A forward written in the test."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def test_no_architecture_of_the_zoo_meets_an_operation_beyond_its_rule():
    for architecture in ARCHITECTURES.values():
        torch.manual_seed(0)
        network = architecture.build()
        inputs = architecture.inputs(torch.Generator().manual_seed(1), 4)
        twin, probe, _ = random_copy(network, inputs)
        drafts = find_candidates(trace(twin, probe, architecture.axes), architecture.names)
        assert not [d.refused for d in drafts if d.refused and "beyond its rule" in d.refused]


def test_embedding_then_flatten_gives_every_dimension_its_positions_of_all_features():
    """torch-pruning gives dimension 1 columns [3, 4, 5] here, silently."""
    network = Net(
        lambda m, codes: m.out(m.table(codes).flatten(1)), table=nn.Embedding(7, 4), out=nn.Linear(12, 2)
    )
    units = sets_of(network, torch.randint(0, 7, (6, 3)), axes=[None])["table"]
    assert readers_of(units) == {"out.weight": [0, 1, 2, 3] * 3}


def test_a_branch_behind_a_raw_input_owns_the_columns_behind_it():
    """torch-pruning removes column 0 instead of 6 for the branch's first unit, silently."""
    network = Net(
        lambda m, x, codes: m.out(torch.cat([x, m.table(codes)], 1)),
        table=nn.Embedding(5, 4),
        out=nn.Linear(10, 2),
    )
    units = sets_of(network, torch.randn(6, 6), torch.randint(0, 5, (6,)), axes=[-1, None])
    assert readers_of(units["table"]) == {"out.weight": [-1] * 6 + [0, 1, 2, 3]}
    assert readers_of(units["x0"]) == {"out.weight": [0, 1, 2, 3, 4, 5] + [-1] * 4}


def test_a_row_taken_from_a_table_does_not_tie_what_it_is_added_to():
    def forward(m, x):
        h = m.a(x) + m.types.weight[0]
        return m.b(torch.relu(h))

    network = Net(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 1), types=nn.Embedding(2, 6))
    units = sets_of(network, torch.randn(6, 5))["a"]
    assert units.refused is None
    assert units.count == 6
    assert ("types.weight", 1) in {(slot.tensor, slot.dim) for slot in units.slots}


def test_writes_into_slices_keep_their_units():
    def forward(m, x):
        h = torch.zeros(x.shape[0], 9, dtype=x.dtype)
        h[:, 5:] = m.a(x)
        h[:, :5] += x
        return m.b(h)

    network = Net(forward, a=nn.Linear(5, 4), b=nn.Linear(9, 2))
    seen = {d.name: d for d in find_candidates(trace(network.eval(), (torch.randn(3, 5),), (-1,)), ["x0"])}
    units = {s.tensor: s.unit.tolist() for s in seen["a"].slots if s.role == "reader"}
    assert units == {"b.weight": [-1] * 5 + [0, 1, 2, 3]}
    columns = {s.tensor: s.unit.tolist() for s in seen["x0"].slots if s.role == "reader"}
    assert columns["b.weight"] == [0, 1, 2, 3, 4] + [-1] * 4


def test_an_operation_without_a_rule_is_refused_by_its_name_and_layer():
    network = Net(lambda m, x: m.b(m.pair(m.a(x), m.a(x))), a=nn.Linear(5, 4), b=nn.Linear(3, 1))
    network.pair = nn.Bilinear(4, 4, 3)
    refused = sets_of(network, torch.randn(6, 5))["a"].refused
    assert refused == "_trilinear in Bilinear 'pair' has no rule"


def test_a_size_in_an_attribute_follows_the_cut():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.n_head = 4
            self.split, self.out = nn.Linear(6, 12), nn.Linear(12, 2)

        def forward(self, x):
            h = self.split(x).view(x.shape[0], self.n_head, 3)
            return self.out((h * h.sum(-1, keepdim=True).sigmoid()).flatten(1))

    split = sets_of(Heads(), torch.randn(6, 6))["split"]
    assert split.refused is None
    assert split.count == 4
    assert [(a.module, a.name, a.per_unit) for a in split.attributes] == [("", "n_head", 1)]


def test_a_recurrent_network_that_amplifies_round_off_is_still_proved():
    torch.manual_seed(0)
    network = Net(
        lambda m, x: m.out(m.rnn(x)[0][:, -1]), rnn=nn.GRU(3, 24, batch_first=True), out=nn.Linear(24, 1)
    )
    with torch.no_grad():
        for parameter in network.rnn.parameters():
            parameter.mul_(3.0)
    sets = sets_of(network, torch.randn(4, 120, 3), axes=[2])
    assert [s.refused for s in sets.values()] == [None, None]


def test_units_that_do_not_matter_prove_nothing_and_stay():
    network = Net(
        lambda m, x: m.b(m.a(x) * 0.0) + m.c(x), a=nn.Linear(5, 4), b=nn.Linear(4, 2), c=nn.Linear(5, 2)
    )
    refused = sets_of(network, torch.randn(6, 5))["a"].refused
    assert refused is not None
    assert "changes no output" in refused


def test_columns_multiplied_with_one_another_stay_and_say_so():
    network = Net(lambda m, x: m.a(x[:, :3] * x[:, 3:]), a=nn.Linear(3, 2))
    refused = sets_of(network, torch.randn(6, 6))["x0"].refused
    assert refused is not None
    assert "joins columns with one another" in refused


def test_a_plan_whose_reader_is_a_buffer_is_refused():
    network = Net(lambda m, x: m.b(torch.relu(x @ m.basis)), basis=torch.randn(5, 4), b=nn.Linear(4, 2))
    refused = sets_of(network, torch.randn(6, 5))["x0"].refused
    assert refused is not None
    assert "buffer" in refused


def test_a_network_that_cannot_be_watched_is_an_error_of_one_line():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise RuntimeError("not under a mode\nsecond line")
            return self.a(x)

    with pytest.raises(ModelError, match="cannot be traced") as caught:
        sets_of(Picky(), torch.randn(4, 3))
    assert "\n" not in str(caught.value)


def test_perturbation_catches_a_reader_that_was_missed():
    network = Net(lambda m, x: m.b(torch.relu(m.a(x))) + m.c(torch.relu(m.a(x))), a=nn.Linear(5, 4))
    network.b, network.c = nn.Linear(4, 2), nn.Linear(4, 2)
    x = torch.randn(6, 5)
    good = sets_of(network, x)["a"]
    bad = type(good)("a", "hidden", 4, tuple(s for s in good.slots if s.tensor != "c.weight"))
    prover = EquivalenceChecker(network, (x,), (-1,))
    assert prover.check_each([good]) is None
    assert "past the weights that read them" in (prover.check_each([bad]) or "")


def test_paddings_of_an_input_narrowed_twice_are_one():
    values = torch.arange(6.0)
    first = ConstantFill(0, -1, torch.tensor([0, 2, 3, 5]), values)
    second = ConstantFill(0, -1, torch.tensor([1, 3]), torch.tensor([9.0, 8.0, 7.0, 6.0]))
    both = PruningPlan(padding={0: first}).then(PruningPlan(padding={0: second})).padding[0]
    x = torch.randn(4, 2)
    assert both.kept.tolist() == [2, 5]
    one_by_one = first(nn.Identity(), second(nn.Identity(), (x,)))[0]
    assert torch.equal(both(nn.Identity(), (x,))[0], one_by_one)
