"""The record of a variant: read back as written, and checked key by key."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import write_json
from trt_mtp import __version__
from trt_mtp.build.variant import (
    VariantRecord,
    fingerprint_of,
    list_variants,
    read_variant,
    with_verification,
    write_variant,
)
from trt_mtp.errors import InputError

RECORD = VariantRecord(
    schema_version=1,
    name="k3",
    engine="cpu",
    draft_length=3,
    checkpoint={"path": "/c", "sha256": "00"},
    versions={"trt_mtp": __version__},
    device={"kind": "cpu", "name": "x", "count": 2},
    max_batch_size=8,
    max_seq_len=512,
    shared="../.shared/00",
    created="2026-01-01T00:00:00+00:00",
    fingerprint="00",
)


def test_a_record_comes_back_as_written(tmp_path: Path) -> None:
    """Writing and reading loses nothing."""
    written = write_variant(tmp_path / "k3", RECORD)
    assert read_variant(tmp_path / "k3") == written
    assert (written.name, written.draft_length, written.engine) == ("k3", 3, "cpu")


def test_a_verification_is_added_on_disk(tmp_path: Path) -> None:
    """The outcome of a verification is in the record that is read next."""
    variant = write_variant(tmp_path / "k3", RECORD)
    verified = with_verification(variant, {"is_identical": True})
    assert read_variant(tmp_path / "k3") == verified
    assert verified.record == replace(RECORD, verification={"is_identical": True})


def test_variants_are_listed_by_draft_length(tmp_path: Path) -> None:
    """k10 comes after k2, hidden folders and those without a record don't count."""
    for length in (10, 0, 2):
        record = replace(RECORD, name=f"k{length}", draft_length=length)
        write_variant(tmp_path / record.name, record)
    write_variant(tmp_path / ".reference", RECORD)
    (tmp_path / "k7").mkdir()
    assert [v.name for v in list_variants(tmp_path)] == ["k0", "k2", "k10"]


@pytest.mark.parametrize("folder", ["", "nothing"])
def test_a_folder_without_variants(tmp_path: Path, folder: str) -> None:
    """An empty or missing folder ends in the command to run."""
    with pytest.raises(InputError, match="run `trt-mtp build`"):
        list_variants(tmp_path / folder)


def test_a_folder_without_a_record_is_no_variant(tmp_path: Path) -> None:
    """What a killed build may leave is refused."""
    with pytest.raises(InputError, match=r"has no variant\.json"):
        read_variant(tmp_path)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "schema_version is 2, expected 1": lambda r: r.update(schema_version=2),
    "unknown key draft_lenght; did you mean draft_length?": lambda r: r.update(draft_lenght=3),
    "the key max_seq_len is missing": lambda r: r.pop("max_seq_len"),
    "draft_length is '3', which is of the wrong type": lambda r: r.update(draft_length="3"),
    "max_batch_size is True, which is of the wrong type": lambda r: r.update(max_batch_size=True),
    "name is '../../../x'": lambda r: r.update(name="../../../x"),
    "name is 'k1; reboot'": lambda r: r.update(name="k1; reboot"),
    "draft_length is -1": lambda r: r.update(draft_length=-1),
    "max_batch_size is 0": lambda r: r.update(max_batch_size=0),
    "max_seq_len is 1000000000000": lambda r: r.update(max_seq_len=10**12),
    "shared is '/etc'": lambda r: r.update(shared="/etc"),
    "shared is '../../secret'": lambda r: r.update(shared="../../secret"),
    "details is {'llm_args': '../x'}": lambda r: r.update(details={"llm_args": "../x"}),
    "was built by trt-mtp 9.9.9": lambda r: r.update(versions={"trt_mtp": "9.9.9"}),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_damaged_record_names_the_key(tmp_path: Path, message: str) -> None:
    """Each wrong key has its sentence with the file's name."""
    write_variant(tmp_path, RECORD)
    record = json.loads((tmp_path / "variant.json").read_text())
    CHANGES[message](record)
    write_json(tmp_path / "variant.json", record)
    with pytest.raises(InputError) as raised:
        read_variant(tmp_path)
    assert message in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_record_that_is_no_object(tmp_path: Path) -> None:
    """JSON of another kind is refused."""
    (tmp_path / "variant.json").write_text("[]")
    with pytest.raises(InputError, match="is not a JSON object"):
        read_variant(tmp_path)


def test_fingerprints_know_content_and_not_order() -> None:
    """Equal values give one fingerprint, others another."""
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})
