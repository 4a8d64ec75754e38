"""Quantising a checkpoint with NVIDIA ModelOpt's own script, and checking the MTP head after it."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from trt_mtp.build.checkpoint import Checkpoint, read_checkpoint
from trt_mtp.build.checkpoint_dtypes import checkpoint_dtype
from trt_mtp.build.model_shape import shape_of
from trt_mtp.build.store import SHARED, TEMPORARY
from trt_mtp.build.tensorrt_llm import (
    checkpoint_digest,
    is_head_quantized,
    with_checkpoint,
)
from trt_mtp.build.trtllm_config import TrtllmOptions
from trt_mtp.errors import InputError, TrtMtpError

STDERR = 2  # what ModelOpt prints is no result of ours
# where Model-Optimizer has had the script; the first is newer
SCRIPTS = ("examples/hf_ptq/hf_ptq.py", "examples/llm_ptq/hf_ptq.py")


def quantized_folder(checkpoint: Checkpoint, method: str, engines: Path) -> Path:
    """Where the checkpoint in `method` will lie."""
    return engines.resolve() / SHARED / f"{checkpoint.path.resolve().name}-{method}"


def planned_quantization(
    checkpoint: Checkpoint, options: TrtllmOptions, engines: Path
) -> TrtllmOptions:
    """`options` with the folder that the quantised checkpoint will have.

    Raises InputError when there is nothing to quantise.
    """
    if options.quantize is None:
        return options
    if checkpoint.quantization is not None:
        raise InputError(
            f"--quantize {options.quantize}: {checkpoint.path} is {checkpoint.quantization.method} "
            "already; start from the BF16 checkpoint"
        )
    return with_checkpoint(options, quantized_folder(checkpoint, options.quantize, engines))


def quantized_checkpoint(
    checkpoint: Checkpoint, options: TrtllmOptions, engines: Path, modelopt: Path | None
) -> tuple[Checkpoint, TrtllmOptions]:
    """The checkpoint that the variants serve, quantised first where that was asked for.

    One that was quantised before is used again. Raises TrtMtpError when ModelOpt fails or the
    MTP head did not survive it.
    """
    if options.quantize is None:
        return checkpoint, options
    folder = quantized_folder(checkpoint, options.quantize, engines)
    if not folder.is_dir():
        run_modelopt(checkpoint, options.quantize, folder, modelopt)
    found = read_checkpoint(folder)
    return found, replace(
        options,
        checkpoint=folder,
        shape=shape_of(found),
        checkpoint_dtype=checkpoint_dtype(found),
        checkpoint_digest=checkpoint_digest(found),
        quantize=None,
    )


def run_modelopt(checkpoint: Checkpoint, method: str, folder: Path, modelopt: Path | None) -> None:
    """Quantise `checkpoint` into `folder`, which appears only when all of it is right."""
    script = modelopt_script(modelopt)
    partial = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, str(script), "--pyt_ckpt_path", str(checkpoint.path)),
        *("--qformat", method, "--export_path", str(partial)),
    ]
    # no limit: hours for a large model; it shows what it does, and Ctrl-C ends it
    done = subprocess.run(command, cwd=script.parent, stdout=STDERR, check=False)
    if done.returncode:
        raise TrtMtpError(
            f"ModelOpt failed with exit code {done.returncode}; its messages are above, and the "
            f"command was: {' '.join(command)}"
        )
    require_head(checkpoint, partial)
    os.rename(partial, folder)


def modelopt_script(modelopt: Path | None) -> Path:
    """ModelOpt's quantisation script, which its package does not contain."""
    if modelopt is not None:
        for name in SCRIPTS:
            if (modelopt / name).is_file():
                return (modelopt / name).resolve()
        raise InputError(f"--modelopt {modelopt} has no {SCRIPTS[0]}; give the checkout's folder")
    raise InputError(
        "--quantize needs ModelOpt's script, which is not in its package: "
        "git clone https://github.com/NVIDIA/Model-Optimizer and add --modelopt Model-Optimizer"
    )


def require_head(checkpoint: Checkpoint, folder: Path) -> None:
    """Raise TrtMtpError unless the quantised checkpoint has the whole MTP head, unquantised."""
    try:
        found = read_checkpoint(folder)
    except InputError as error:
        raise TrtMtpError(f"ModelOpt wrote a checkpoint that can't draft: {error}") from None
    missing = found.mtp.missing or tuple(
        sorted(set(found.mtp.tensors) ^ set(checkpoint.mtp.tensors))
    )
    if missing:
        raise TrtMtpError(
            f"ModelOpt changed the MTP head: {missing[0]} is not in both checkpoints; "
            "use a newer ModelOpt (0.44.0 and later keep mtp.*)"
        )
    if is_head_quantized(found):
        raise TrtMtpError(
            "ModelOpt quantised the MTP head, which lowers acceptance; "
            "use a newer ModelOpt (0.44.0 and later exclude mtp.*)"
        )
