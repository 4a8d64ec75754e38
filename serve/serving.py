"""Engine variants to a running Triton: resolve, render, start."""

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trt_mtp.build.variant import RECORD, EngineVariant, list_variants, read_variant
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.extras import require_engine
from trt_mtp.files import SMALL, folder_for, read_text
from trt_mtp.serve.grpc_access import LOCAL, GrpcAccess
from trt_mtp.serve.limits import Limits
from trt_mtp.serve.ports import ANY_PORTS, Ports
from trt_mtp.serve.processes import postponed
from trt_mtp.serve.repository import model_name, render_repository, restore_models
from trt_mtp.serve.streaming_interval import NO_INTERVAL, GivenInterval
from trt_mtp.serve.triton import Progress, TritonServer
from trt_mtp.serve.triton_install import find_triton
from trt_mtp.temporary import held, make_again

# by engine: the CPU engine may compile first, a GPU's reads all weights
LOAD_TIMEOUT_S = {"cpu": 120.0, "tensorrt-llm": 3600.0, "vllm": 900.0}
ANSWER_TIMEOUT_S = Limits().answer_s
PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+,:@%=-]+")  # no shell takes these for anything else
PLAIN_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # where $TMPDIR is no such path


def limits_for(
    variants: Sequence[EngineVariant],
    answer_s: float = ANSWER_TIMEOUT_S,
    load_s: float | None = None,
) -> Limits:
    """The limits with `answer_s` and `load_s`; None: the load time of the variants' engine."""
    longest = max(LOAD_TIMEOUT_S[variant.engine] for variant in variants)
    return Limits(answer_s, longest if load_s is None else load_s)


def resolve_variants(folders: Sequence[Path]) -> tuple[EngineVariant, ...]:
    """The variants in `folders` by draft length; a directory may hold one variant or several.

    Raises InputError if one holds none, or if variants are of different engines or models.
    """
    by_folder: dict[Path, EngineVariant] = {}
    for folder in folders:
        is_variant = (folder / RECORD).is_file()
        for variant in (read_variant(folder),) if is_variant else list_variants(folder):
            by_folder[variant.folder.resolve()] = variant
    variants = tuple(sorted(by_folder.values(), key=lambda variant: variant.draft_length))
    for other in variants[1:]:
        if other.record.fingerprint != variants[0].record.fingerprint:
            raise InputError(
                f"{variants[0].folder} and {other.folder} were built from different checkpoints or "
                f"for different machines; serve them apart, or run `trt-mtp build` again"
            )
    return variants


@contextmanager
def serving(
    variants: Sequence[EngineVariant],
    *,
    repository: Path | None = None,
    ports: Ports = ANY_PORTS,
    access: GrpcAccess = LOCAL,
    limits: Limits | None = None,
    interval: GivenInterval = NO_INTERVAL,
    on_progress: Progress = lambda text: None,
) -> Iterator[TritonServer]:
    """A Triton that serves `variants` until the context ends; call its `check` often.

    Without `limits`, those of the engine hold; `interval` is for streams that ask for none. Without
    `repository`, the model repository is temporary. The directory with Triton's log is removed at
    the end, unless there was an error.
    """
    require_engine(variants[0].engine)
    install = find_triton()
    run_folder = _make_run_folder()
    repository = repository or run_folder / "model_repository"
    try:
        models = _rendered(variants, repository, run_folder, interval)
        limits = limits or limits_for(variants)

        def restore(models: Sequence[str]) -> None:
            make_again(run_folder)
            restore_models(variants, models, repository, interval)
            plain_path(repository.resolve(), run_folder)

        server = TritonServer(
            install,
            plain_path(repository.resolve(), run_folder),
            models,
            run_folder,
            ports,
            access,
            limits,
            restore,
        )
        with held(run_folder):
            try:
                server.start(on_progress)
                yield server
            finally:
                server.stop()
    except (InputError, KeyboardInterrupt, GeneratorExit):
        shutil.rmtree(run_folder, ignore_errors=True)
        raise
    shutil.rmtree(run_folder, ignore_errors=True)


def _rendered(
    variants: Sequence[EngineVariant], repository: Path, run_folder: Path, interval: GivenInterval
) -> tuple[str, ...]:
    """The repository's models; there is no log yet to leave behind where that fails."""
    try:
        with postponed():  # it imports tritonclient
            return render_repository(variants, repository, interval=interval)
    except TrtMtpError:
        shutil.rmtree(run_folder, ignore_errors=True)
        raise


def _make_run_folder() -> Path:
    """A folder whose path Triton takes; raises TrtMtpError where none can be made."""
    problems = []
    for parent in (tempfile.gettempdir(), *PLAIN_TEMPORARY):
        if PLAIN_PATH.fullmatch(parent):
            try:
                return Path(tempfile.mkdtemp(prefix="trt-mtp-serve-", dir=parent))
            except OSError as error:
                problems.append(str(error))
        else:
            problems.append(f"{parent} has characters that Triton's shell command can't hold")
    raise TrtMtpError(f"can't make a temporary folder: {'; '.join(problems)}")


def plain_path(folder: Path, run_folder: Path) -> Path:
    """`folder`, or a link to it in `run_folder` where its own path has other characters.

    Triton starts the process of a Python model through a shell without quoting its path.
    """
    if PLAIN_PATH.fullmatch(str(folder)):
        return folder
    link = run_folder / "repository"
    with suppress(FileExistsError):  # of the server's last start
        link.symlink_to(folder)
    return link


def describe(server: TritonServer, variants: Sequence[EngineVariant]) -> dict[str, Any]:
    """The output of `trt-mtp serve --json`."""
    return {
        "schema_version": 1,
        "grpc": server.grpc_url,
        "http": server.http_url or None,
        "metrics": server.metrics_url,
        "models": list(server.models),
        "variants": [
            {"name": variant.name, "draft_length": variant.draft_length, "model": model}
            for variant in variants
            if (model := model_name(variant)) in server.models
        ],
        "pid": server.pid,
        "log": str(server.log),
    }


def admin_key_in(file: Path) -> str:
    """The key in `file`; a missing file is created, readable by its owner only."""
    try:
        with folder_for(file), suppress(FileExistsError):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "w") as made:
                    made.write(secrets.token_hex(16) + "\n")
            except OSError:
                file.unlink()  # half a key would be taken for one
                raise
    except OSError as error:
        raise InputError(f"{file} can't be used for the admin key: {error}") from None
    key = read_text(file, SMALL).strip()
    if not re.fullmatch(r"[\x21-\x7e]{8,}", key):
        raise InputError(f"{file} holds no admin key: expected one word of 8 characters or more")
    return key
