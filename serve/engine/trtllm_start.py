"""Starting `tensorrt_llm.LLM` as NVIDIA's own Triton model does.

The steps, and their order around the import, are those of
triton_backend/all_models/llmapi/tensorrt_llm/1/model.py @044a90d2 in NVIDIA/TensorRT-LLM.
"""

import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from trt_mtp.errors import TrtMtpError
from trt_mtp.files import read_yaml

# What an `mpirun` that started Triton left behind; a variant starts workers of its own. Settings
# (OMPI_MCA_*, PMIX_MCA_*) stay.
MPI_JOB = frozenset({
    "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_NODE_RANK", "OMPI_UNIVERSE_SIZE",
    "OMPI_FIRST_RANKS", "OMPI_APP_CTX_NUM_PROCS", "PMIX_RANK", "PMIX_NAMESPACE", "PMIX_SERVER_URI",
    "PMIX_SERVER_URI2", "PMIX_SERVER_URI21", "PMIX_SERVER_URI3", "PMIX_SERVER_TMPDIR",
    "PMIX_SYSTEM_TMPDIR", "PMIX_SECURITY_MODE", "PMIX_GDS_MODULE", "PMIX_BFROPS_MODULE",
    "PMIX_PTL_MODULE", "PMIX_VERSION", "PMIX_HOSTNAME", "PMI_RANK", "PMI_SIZE", "PMI_FD",
    "PMI_SPAWNED", "PMI_APPNUM",
})  # fmt: skip
MPI_JOB_PREFIXES = ("OMPI_MCA_orte_", "ORTE_")


def load_llm(folder: Path, record: Mapping[str, Any]) -> Any:
    """`tensorrt_llm.LLM` for the variant in `folder`.

    Its environment, the GPUs it may see among it, is set before tensorrt_llm is imported: that is
    when it is read, and CUDA then opens the GPUs that the workers inherit. Raises TrtMtpError when
    the variant can't be started.
    """
    details = record["details"]
    prepare_environment(os.environ, details["environment"])
    written = read_yaml(folder / details["llm_args"])
    try:
        from tensorrt_llm import LLM
        from tensorrt_llm.llmapi.llm_args import update_llm_args_with_extra_dict

        arguments = update_llm_args_with_extra_dict({}, written)
        return LLM(**arguments, **placement(details["environment"]), **global_session())
    except ImportError as error:
        raise TrtMtpError(
            f"{folder} needs tensorrt_llm, which can't be imported: {error}"
        ) from None
    except TrtMtpError:
        raise
    except Exception as error:
        raise TrtMtpError(f"TensorRT-LLM can't start {folder.name}: {error}") from error


def prepare_environment(environ: MutableMapping[str, str], variant: Mapping[str, str]) -> None:
    """Clear `environ` of a job that it was started in, and set the variables of `variant`.

    TRTLLM_VISIBLE_DEVICES goes along with CUDA_VISIBLE_DEVICES, because only TRTLLM* and TLLM*
    variables are handed to the workers (tensorrt_llm/llmapi/mpi_session.py @00a1352a).
    """
    for name in inherited_job(environ):
        del environ[name]
    environ.update(variant)
    if "CUDA_VISIBLE_DEVICES" in variant:
        environ["TRTLLM_VISIBLE_DEVICES"] = variant["CUDA_VISIBLE_DEVICES"]


def inherited_job(names: Iterable[str]) -> list[str]:
    """Those of `names` that tell a process of its place in an MPI job.

    >>> inherited_job(["PMI_RANK", "ORTE_X", "OMPI_MCA_btl", "HOME"])
    ['PMI_RANK', 'ORTE_X']
    """
    return [name for name in names if name in MPI_JOB or name.startswith(MPI_JOB_PREFIXES)]


def placement(variant: Mapping[str, str]) -> dict[str, Any]:
    """How many GPUs this machine has for the variant, where it has GPUs of its own."""
    devices = variant.get("CUDA_VISIBLE_DEVICES", "")
    return {"gpus_per_node": len(devices.split(","))} if devices else {}


def global_session() -> dict[str, Any]:
    """The MPI session of a leader whose other ranks were started with it; empty where it is alone.

    The other ranks wait here until the leader ends, and then raise TrtMtpError.
    """
    from tensorrt_llm._utils import global_mpi_rank, global_mpi_size

    if global_mpi_size() == 1:
        return {}
    from mpi4py.MPI import COMM_WORLD

    if global_mpi_rank() == 0:
        from tensorrt_llm.llmapi import MpiCommSession

        session = MpiCommSession(comm=COMM_WORLD, n_workers=COMM_WORLD.Get_size())
        return {"_mpi_session": session}
    from mpi4py.futures import MPICommExecutor

    with MPICommExecutor(COMM_WORLD):
        pass  # ends with the leader's session
    raise TrtMtpError(f"rank {global_mpi_rank()} has worked for its leader, which ended")
