"""The models that are known by name."""

import pytest

from tests.model_sizes import FILE, text
from tests.real_checkpoints import NAMES
from trt_mtp.build.released_models import PRECISIONS, find_model, released_models
from trt_mtp.errors import InputError


def test_the_sizes_are_those_of_the_checkpoints() -> None:
    """models.json says what reading a checkpoint of that model says."""
    assert FILE.read_text() == text(), "run `python -m tests.model_sizes`"
    assert len(released_models()) == len(NAMES) * len(PRECISIONS)


@pytest.mark.parametrize(
    ("asked", "name", "precision"),
    [
        ("qwen3.8-27b", "qwen3.8-27b", "bf16"),
        ("Qwen/Qwen3.8-27B-FP8", "qwen3.8-27b", "fp8"),
        ("qwen3.6-35b-a3b-nvfp4", "qwen3.6-35b-a3b", "nvfp4"),
    ],
)
def test_a_model_is_found_by_its_name(asked: str, name: str, precision: str) -> None:
    """The Hub's spelling, a precision and capitals are understood; BF16 is the default."""
    assert find_model(asked)[:2] == (name, precision)


def test_an_unknown_model_names_the_nearest() -> None:
    """A typing error ends in one sentence with the models that there are."""
    with pytest.raises(InputError, match=r"did you mean qwen3\.8-27b.*qwen3\.5-122b-a10b"):
        find_model("qwen3.8-72b")
