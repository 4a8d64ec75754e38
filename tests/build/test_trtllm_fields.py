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
    supported_version,
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


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("WIDEEP", {"1.3.0rc16", "1.3.0rc26"}),
        ("MEGAMOE_CUTEDSL", {"1.3.0rc27", "1.4.0rc0", "1.4.0rc1", "1.4.0rc4"}),
        ("CUTEDSL_FC12", {"1.4.0rc1", "1.4.0rc4"}),
        ("TRTLLM", {"1.3.0rc16", "1.3.0rc26", "1.3.0rc27", "1.4.0rc0", "1.4.0rc1", "1.4.0rc4"}),
    ],
)
def test_words_by_version(word: str, allowed: set[str]) -> None:
    """A backend of the experts is allowed in the versions that have it, and named in no other."""
    args = {**BASE, "moe_config": {"backend": word}}
    for text in ("1.3.0rc16", "1.3.0rc26", "1.3.0rc27", "1.4.0rc0", "1.4.0rc1", "1.4.0rc4"):
        told = problems(args, parse_version(text))
        assert (told == []) == (text in allowed), text
        assert all(f"'{word}'" in one and f"{word}," not in one for one in told)


def test_required_keys() -> None:
    """A missing required key is named, in nested classes too."""
    version = VERSIONS[-1]
    assert problems({}, version) == ["model is missing; TensorRT-LLM 1.4.0rc4 requires it"]
    found = problems({**BASE, "speculative_config": {"max_draft_len": 3}}, version)
    assert found == [
        "speculative_config.decoding_type is missing; TensorRT-LLM 1.4.0rc4 requires it"
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


numbers = st.integers(0, 99)
version_texts = st.one_of(
    st.builds("1.{}.{}".format, st.integers(2, 4), numbers),
    st.builds("1.{}".format, st.integers(2, 4)),
    st.builds("1.{}.0rc{}".format, st.integers(2, 4), numbers),
    st.builds("1.{}.0rc{}.post{}".format, st.integers(2, 4), numbers, numbers),
    st.builds("v1.{}.0rc{}+cu{}".format, st.integers(2, 4), numbers, numbers),
    st.text("v1234.0rcpost+dev-", max_size=16),
)


@given(version_texts)
def test_every_version_gets_an_answer(text: str) -> None:
    """A version is known, or refused with the reason and one to use; what is none is said to be."""
    try:
        assert supported_version(text) in VERSIONS
        return
    except InputError as error:
        said = str(error)
    try:
        version = parse_version(text)
    except InputError:
        assert said == (f"{text!r} is not a TensorRT-LLM version; expected one like 1.3.0rc27")
        return
    assert version not in VERSIONS
    assert f"TensorRT-LLM {version} " in said
    assert "use 1.3.0rc27" in said
    is_old = version < VERSIONS[0]
    assert ("can't serve Qwen MTP: " in said) == is_old
    assert (f"or --trtllm-version {VERSIONS[-1]}" in said) == (not is_old)


def test_a_key_of_a_newer_version() -> None:
    """It is said since when it is published, and what is nearest here."""
    (problem,) = problems(
        {**BASE, "speculative_config": {"decoding_type": "MTP", "spec_dec_variant": 2}},
        parse_version("1.3.0rc27"),
    )
    assert problem.startswith(
        "speculative_config.spec_dec_variant is published from 1.4.0rc1 on, not for "
        "TensorRT-LLM 1.3.0rc27"
    )
    (problem,) = problems(
        {**BASE, "kv_cache_config": {"disk_cache_paht": "/x"}}, parse_version("1.3.0rc27")
    )
    assert problem.endswith("(KvCacheConfig); did you mean disk_cache_path?")
