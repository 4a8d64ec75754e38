"""What is done before and around starting TensorRT-LLM, on doubles of it and of mpi4py."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.tensorrt_llm import options_for, plan_variants, write_variants
from trt_mtp.build.trtllm_version import supported_version
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.engine import open_engine
from trt_mtp.serve.engine.trtllm_start import prepare_environment

DOUBLES = Path(__file__).parents[2] / "doubles"


@pytest.fixture(autouse=True)
def _doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The doubles are found, and modules and environment are restored."""
    monkeypatch.syspath_prepend(DOUBLES)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    for name in [n for n in sys.modules if n.split(".")[0] in ("tensorrt_llm", "mpi4py")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def engines(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k0 on GPU 4 and 5, k3 on GPU 6 and 7."""
    folder = tmp_path_factory.mktemp("two") / "engines"
    found = read_checkpoint(checkpoint)
    options = options_for(
        found, supported_version("1.3.0rc27"), None, max_batch_size=4, max_seq_len=256,
        tensor_parallel=2, devices=(4, 5, 6, 7),
    )  # fmt: skip
    write_variants(plan_variants(found, options, (0, 3), folder), found, options, folder)
    return folder


def test_devices_before_the_import(engines: Path) -> None:
    """The variant's GPUs are in both variables when tensorrt_llm is imported, and counted."""
    opened = open_engine(engines / "k3")
    opened.close()
    import tensorrt_llm

    environment = tensorrt_llm.ENVIRONMENT
    assert environment["CUDA_VISIBLE_DEVICES"] == environment["TRTLLM_VISIBLE_DEVICES"] == "6,7"
    assert opened._llm.args["gpus_per_node"] == 2  # type: ignore[attr-defined]
    assert "_mpi_session" not in opened._llm.args  # type: ignore[attr-defined]


def test_an_outer_job_is_forgotten() -> None:
    """Variables of an `mpirun` around Triton go, its settings and all else stay."""
    environ = {
        "OMPI_COMM_WORLD_RANK": "0", "PMIX_NAMESPACE": "x", "PMI_SIZE": "1", "ORTE_A": "1",
        "OMPI_MCA_orte_b": "1", "OMPI_MCA_btl": "tcp", "PMIX_MCA_gds": "hash", "HOME": "/",
    }  # fmt: skip
    prepare_environment(environ, {"A": "1"})
    assert environ == {"OMPI_MCA_btl": "tcp", "PMIX_MCA_gds": "hash", "HOME": "/", "A": "1"}


def test_a_leader_takes_the_ranks_that_are_there(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ranks were started together, rank 0 leads them."""
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_MPI_SIZE", "16")
    opened = open_engine(engines / "k3")
    opened.close()
    assert opened._llm.args["_mpi_session"].n_workers == 16  # type: ignore[attr-defined]


def test_other_ranks_wait(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others work for the leader until it ends, and serve nothing of their own."""
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_MPI_SIZE", "16")
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_MPI_RANK", "3")
    with pytest.raises(TrtMtpError, match="rank 3 has worked for its leader, which ended"):
        open_engine(engines / "k3")
