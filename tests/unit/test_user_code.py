"""Whatever user code raises is one error of glprune's; Ctrl-C and glprune's own bugs stay what they are."""

import os

import pytest
import torch
from torch import nn

from glprune._user_code import describe, network_errors, user_code
from glprune.errors import DataError, ModelError, RecipeError


class UnprintableError(Exception):
    def __str__(self):
        raise ValueError


class Odd(nn.Module):
    """Raises in its forward, or in a method that it overrides."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error

    def train(self, mode=True):
        raise self.error


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no way back")


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(0),
        SystemExit(),
        GeneratorExit(),
        BaseException("odd"),
        ValueError("a\nb"),
        UnprintableError(),
    ],
    ids=repr,
)
def test_what_user_code_raises_is_one_error_in_one_line(error):
    with (
        pytest.raises(DataError, match=r"^loader failed \(\w+: .* at test_user_code.py:\d+\)\.$") as caught,
        user_code(DataError, "loader"),
    ):
        raise error
    assert caught.value.__cause__ is error
    error.add_note("what is left")
    with (
        pytest.raises(
            ModelError, match=r"^The network's code failed \(\w+: .* at test_user_code.py:\d+\); "
        ) as caught,
        network_errors(),
    ):
        Odd(error)(torch.zeros(1))
    assert caught.value.__notes__ == ["what is left"]


def test_ctrl_c_and_errors_of_glprune_pass():
    for error in (KeyboardInterrupt(), RecipeError("recipe")):
        with pytest.raises(type(error)) as caught, user_code(DataError, "loader"):
            raise error
        assert caught.value is error
        with pytest.raises(type(error)) as caught, network_errors():
            Odd(error)(torch.zeros(1))
        assert caught.value is error


def test_an_error_that_the_caller_handles_passes():
    with pytest.raises(FileNotFoundError), user_code(DataError, "loader", (FileNotFoundError,)):
        raise FileNotFoundError
    with pytest.raises(DataError), user_code(DataError, "loader", (FileNotFoundError,)):
        raise OSError


def test_a_bug_outside_of_a_network_keeps_its_traceback():
    for error in (ZeroDivisionError("bug"), SystemExit(3)):
        with pytest.raises(type(error)), network_errors():
            raise error


def test_code_of_a_network_is_known_in_methods_and_backward_passes_and_behind_a_cause():
    with (
        pytest.raises(ModelError, match=r"The network's code failed \(ValueError: no way back"),
        network_errors(),
    ):
        Backward.apply(torch.ones(2, requires_grad=True)).sum().backward()
    odd = Odd(KeyError("mode"))
    with pytest.raises(ModelError, match=r"The network's code failed \(KeyError: 'mode'"), network_errors():
        odd.eval()
    with pytest.raises(ModelError, match="The network's code failed"), network_errors():
        list(Odd(StopIteration())(x) for x in torch.zeros(2, 1))


def test_the_working_directory_is_restored(tmp_path):
    before = os.getcwd()
    with user_code(DataError, "loader"):
        os.chdir(tmp_path)
    assert os.getcwd() == before


def test_the_place_of_an_error_is_the_users_line_and_not_a_librarys():
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(3, 1)(torch.zeros(2, 4))
    assert describe(caught.value).endswith(f"at test_user_code.py:{caught.tb.tb_lineno}")
