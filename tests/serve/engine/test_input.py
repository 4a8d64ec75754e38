"""What an engine refuses, each with one sentence that names the value."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine_fixtures import Answer, generate, opened
from trt_mtp.build.text_files import read_end_ids
from trt_mtp.errors import InputError
from trt_mtp.serve.engine import open_engine
from trt_mtp.serve.engine.base import Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine

SAMPLING = SamplingParams(max_tokens=8)


@pytest.fixture(scope="module")
def engine(drafting: Path) -> Iterator[CpuEngine]:
    """An engine that stays open over all refusals."""
    engine = CpuEngine(drafting, draft_length=1, max_batch_size=2, max_seq_len=64)
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("prompt", "sampling", "sentence"),
    [
        ((), {}, "the prompt is empty"),
        ((5,) * 57, {}, "the prompt has 57 tokens and max_tokens is 8; .* at most 64"),
        ((5,), {"max_tokens": 64}, "max_tokens is 64; together they may be at most 64"),
        ((5,), {"max_tokens": 0}, "max_tokens is 0; expected at least 1"),
        ((5,), {"max_tokens": -3}, "max_tokens is -3"),
        ((5, -1), {}, "input_ids must lie between 0 and 319"),
        ((320,), {}, "input_ids must lie between 0 and 319"),
        ((2**70,), {}, "input_ids must lie between 0 and 319"),
        ((5,), {"temperature": -0.1}, "temperature is -0.1; expected 0 to 100"),
        ((5,), {"temperature": float("nan")}, "temperature is nan"),
        ((5,), {"temperature": float("inf")}, "temperature is inf"),
        ((5,), {"top_k": -1}, r"top_k is -1; expected 0 \(all\) or more"),
        ((5,), {"top_p": 0.0}, "top_p is 0.0; expected more than 0, at most 1"),
        ((5,), {"top_p": 1.01}, "top_p is 1.01"),
        ((5,), {"top_p": float("nan")}, "top_p is nan"),
        ((5,), {"seed": -1}, r"seed is -1; expected 0 to 2\*\*64 - 1"),
        ((5,), {"seed": 2**64}, "seed is 18446744073709551616"),
        ((5,), {"stop": ("END", "")}, "a stop text is empty"),
        ((5,), {"stop": ("x",) * 65}, "the request has 65 stop texts; at most 64"),
        ((5,), {"stop": ("é" * 513,)}, "a stop text has 1026 bytes; each may have at most 1024"),
    ],
)
def test_requests_that_cannot_run_are_refused(
    engine: CpuEngine, prompt: tuple[int, ...], sampling: dict[str, Any], sentence: str
) -> None:
    """submit() raises InputError, calls nobody, and counts nothing."""
    before, answer = engine.statistics(), Answer()
    with pytest.raises(InputError, match=sentence):
        engine.submit(Request(prompt, replace(SAMPLING, **sampling)), answer.on_chunk)
    assert answer.chunks == []
    assert engine.statistics() == before


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": 2**80, "temperature": 1.0},
        {"seed": 2**64 - 1, "temperature": 1.0},
        {"temperature": 100.0},
        {"temperature": 5e-324},
        {"temperature": 1.0, "top_p": 5e-324},
        {"max_tokens": 63},
    ],
    ids=lambda value: ",".join(value),
)
def test_the_largest_and_smallest_values_run(engine: CpuEngine, sampling: dict[str, Any]) -> None:
    """Every value in range gives an answer, however large or small."""
    (answer,) = generate(engine, [Request((5,), replace(SAMPLING, **sampling))])
    assert answer.last.finish_reason in ("length", "stop")


def damaged(drafting: Path, folder: Path) -> Path:
    """A copy of the packed checkpoint, to be changed."""
    return shutil.copytree(drafting, folder / "copy")


def refuse(folder: Path, sentence: str) -> None:
    """Assert that `folder` can't be opened, with `sentence`."""
    with pytest.raises(InputError, match=sentence), opened(folder, 1):
        pass


@pytest.mark.parametrize("name", ["config.json", "weights.json", "weights.bin", "tokenizer.json"])
def test_a_missing_file_is_named(drafting: Path, tmp_path: Path, name: str) -> None:
    """An engine without one of its files is not opened."""
    folder = damaged(drafting, tmp_path)
    (folder / name).unlink()
    refuse(folder, name)


@pytest.mark.parametrize("size", [0, 4, 1000])
def test_truncated_weights_are_refused(drafting: Path, tmp_path: Path, size: int) -> None:
    """Weights that are cut off are never read past their end."""
    folder = damaged(drafting, tmp_path)
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(size)
    refuse(folder, r"weights\.bin")


def test_damaged_weights_are_refused(drafting: Path, tmp_path: Path) -> None:
    """One wrong bit, or nothing but zeros, is not served."""
    folder = damaged(drafting, tmp_path)
    content = bytearray((folder / "weights.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "weights.bin").write_bytes(content)
    refuse(folder, r"weights\.bin is damaged")
    (folder / "weights.bin").write_bytes(bytes(len(content)))
    refuse(folder, r"weights\.bin is damaged")


@pytest.mark.parametrize("name", ["config.json", "weights.json", "weights.bin", "tokenizer.json"])
def test_a_pipe_instead_of_a_file_is_refused(drafting: Path, tmp_path: Path, name: str) -> None:
    """Nobody waits for what never comes."""
    folder = damaged(drafting, tmp_path)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refuse(folder, f"{name} is a pipe")


@pytest.mark.parametrize("start", [-64, 1 << 60, "0"])
def test_a_tensor_outside_of_the_weights_is_refused(
    drafting: Path, tmp_path: Path, start: object
) -> None:
    """The kernels read where the index says."""
    folder = damaged(drafting, tmp_path)
    index = json.loads((folder / "weights.json").read_text())
    index["tensors"]["norm"]["offset"] = start
    (folder / "weights.json").write_text(json.dumps(index))
    refuse(folder, "norm lies outside; build again")


def test_weights_of_another_format_are_refused(drafting: Path, tmp_path: Path) -> None:
    """What an older trt-mtp packed is not read as if it were today's."""
    folder = damaged(drafting, tmp_path)
    index = json.loads((folder / "weights.json").read_text())
    (folder / "weights.json").write_text(json.dumps(index | {"schema_version": 1}))
    refuse(folder, "schema_version 1, expected 3: .* build again")


def test_a_missing_tensor_is_named(drafting: Path, tmp_path: Path) -> None:
    """An index without a tensor that the model needs says which."""
    folder = damaged(drafting, tmp_path)
    index = json.loads((folder / "weights.json").read_text())
    del index["tensors"]["layers.1.mlp.down_proj"]
    (folder / "weights.json").write_text(json.dumps(index))
    refuse(folder, r"weights\.json has no tensor layers\.1\.mlp\.down_proj; build again")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("hidden_size", None, "config.json: hidden_size is missing"),
        ("intermediate_size", 98, "intermediate_size is 98; the cpu engine needs a multiple of 4"),
        ("linear_key_head_dim", 0, "linear_key_head_dim is 0"),
    ],
)
def test_sizes_that_cannot_run_are_refused(
    drafting: Path, tmp_path: Path, key: str, value: int | None, sentence: str
) -> None:
    """A config.json without a size, or with one that the kernels can't take, is refused."""
    folder = damaged(drafting, tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    if value is None:
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    refuse(folder, sentence)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [1, 2]}, "config.json": {}}, {1, 2}),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 7}}, {7}),
        ({"config.json": {"text_config": {"eos_token_id": 7}}}, {7}),
        ({"config.json": {"eos_token_id": None, "text_config": {"eos_token_id": 7}}}, {7}),
        ({"config.json": {"eos_token_id": 0}}, {0}),
        ({"config.json": {}}, set()),
    ],
)
def test_end_tokens_come_from_the_first_file_that_has_them(
    tmp_path: Path, files: dict[str, Any], expected: set[int]
) -> None:
    """generation_config.json goes before config.json and its text_config; 0 is a token."""
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert read_end_ids(tmp_path, lambda _: None, 320) == expected


def test_a_variant_is_opened_by_the_kind_in_its_record(drafting: Path, tmp_path: Path) -> None:
    """open_engine() reads variant.json, and names the nearest kind for one it doesn't know."""
    record = {"engine": "cpu", "shared": str(drafting), "draft_length": 2}
    record |= {"max_batch_size": 3, "max_seq_len": 40}
    (tmp_path / "variant.json").write_text(json.dumps(record))
    engine = open_engine(tmp_path)
    assert isinstance(engine, CpuEngine)
    assert engine.draft_length == 2
    engine.close()
    (tmp_path / "variant.json").write_text(json.dumps(record | {"engine": "cpuu"}))
    with pytest.raises(
        InputError, match=r"'cpuu'; expected one of cpu, tensorrt-llm, vllm; .* mean cpu"
    ):
        open_engine(tmp_path)
    with pytest.raises(InputError, match=r"nowhere/variant\.json does not exist"):
        open_engine(tmp_path / "nowhere")
