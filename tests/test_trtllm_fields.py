"""The published fields of TensorRT-LLM's configuration, and the check against them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.build.trtllm_fields import ROOT, all_fields, fields_of, problems, with_option
from trt_mtp.build.trtllm_version import (
    Version,
    known_versions,
    parse_version,
    what_was_read,
)
from trt_mtp.errors import InputError

VERSIONS = known_versions()
CLASSES = (ROOT, "MTPDecodingConfig", "KvCacheConfig", "CudaGraphConfig", "MoeConfig")
BASE = {"model": "/models/qwen"}
versions = st.sampled_from(VERSIONS)
values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**6), st.floats(-1, 2), st.text(max_size=5)
)


@pytest.mark.parametrize("class_name", CLASSES)
def test_fields_only_come(class_name: str) -> None:
    """No known version drops a field that an older one has."""
    for older, newer in pairwise(VERSIONS):
        assert fields_of(class_name, older).keys() <= fields_of(class_name, newer).keys()


def test_when_fields_came() -> None:
    """Fields are there from the version on whose published reference first has them."""
    came = {
        "acceptance_rate_threshold": "1.3.0rc24",
        "enable_penalty": "1.3.0rc27",
        "spec_dec_variant": "1.4.0rc1",
        "moe_backend": "1.4.0rc1",
    }
    for name, first in came.items():
        for version in VERSIONS:
            has = name in fields_of("MTPDecodingConfig", version)
            assert has == (version >= parse_version(first)), (name, str(version))
    assert "mtp_eagle_one_model" not in all_fields("MTPDecodingConfig")


def test_only_one_version_is_read_whole() -> None:
    """What was read of a version is told, and of 1.3.0rc27 that is its whole reference."""
    assert what_was_read(parse_version("1.3.0rc27")) == ""
    assert all(what_was_read(v) for v in VERSIONS if v != parse_version("1.3.0rc27"))


def test_required_keys() -> None:
    """A missing required key is named, in nested classes too."""
    version = VERSIONS[-1]
    assert problems({}, version) == ["model is missing; TensorRT-LLM 1.4.0rc1 requires it"]
    found = problems({**BASE, "speculative_config": {"max_draft_len": 3}}, version)
    assert found == [
        "speculative_config.decoding_type is missing; TensorRT-LLM 1.4.0rc1 requires it"
    ]


@pytest.mark.parametrize(
    ("name", "value", "is_accepted"),
    [
        ("stream_interval", True, False),
        ("stream_interval", 1, True),
        ("stream_interval", 0, False),
        ("trust_remote_code", 1, False),
        ("max_batch_size", None, True),
        ("dtype", None, False),
        ("batch_wait_timeout_ms", 1, True),
        ("kv_cache_config", {"use_kv_cache_manager_v2": "auto"}, True),
        ("kv_cache_config", {"use_kv_cache_manager_v2": "yes"}, False),
        ("kv_cache_config", {"free_gpu_memory_fraction": 1.01}, False),
        ("cuda_graph_config", {"batch_sizes": [1, 2, 4]}, True),
        ("cuda_graph_config", {"batch_sizes": [1, 2.5]}, False),
        ("cuda_graph_config", None, True),
        ("scheduler_config", {"capacity_scheduler_policy": "BEST"}, False),
    ],
)
def test_values(name: str, value: object, is_accepted: bool) -> None:
    """Types, ranges, words and null are checked as published."""
    assert (problems({**BASE, name: value}, parse_version("1.3.0rc27")) == []) == is_accepted


@given(version=versions, data=st.data(), value=values)
def test_set_never_breaks(version: Version, data: st.DataObject, value: object) -> None:
    """--set with any key and value either gives a configuration without problems, or refuses."""
    name = data.draw(st.sampled_from(sorted(all_fields(ROOT))))
    try:
        changed = with_option(BASE, f"{name}={value}", version)
    except InputError:
        return
    assert problems(changed, version) == []
