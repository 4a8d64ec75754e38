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
from trt_mtp.serve.processes import postponed
from trt_mtp.serve.repository import model_name, render_repository
from trt_mtp.serve.triton import ANY_PORTS, LOCAL, GrpcAccess, Ports, Progress, TritonServer
from trt_mtp.serve.triton_install import find_triton


def resolve_variants(folders: Sequence[Path]) -> tuple[EngineVariant, ...]:
    """The variants in `folders`, each a variant or a folder of variants, by draft length.

    Raises InputError when one is neither, or when they are for different engines or models.
    """
    found: dict[Path, EngineVariant] = {}
    for folder in folders:
        is_variant = (folder / RECORD).is_file()
        for variant in (read_variant(folder),) if is_variant else list_variants(folder):
            found[variant.folder.resolve()] = variant
    variants = tuple(sorted(found.values(), key=lambda variant: variant.draft_length))
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
    on_progress: Progress = lambda text: None,
) -> Iterator[TritonServer]:
    """A Triton that serves `variants`, stopped at the end; call its `check` now and then.

    Without `repository` the model repository is temporary. The folder with Triton's log is removed
    at the end unless something went wrong.
    """
    install = find_triton()
    run_folder = _make_run_folder()
    repository = repository or run_folder / "model_repository"
    try:
        with postponed():  # it imports tritonclient
            models = render_repository(variants, repository)
        server = TritonServer(install, repository.resolve(), models, run_folder, ports, access)
        try:
            server.start(on_progress)
            yield server
        finally:
            server.stop()
    except (InputError, KeyboardInterrupt, GeneratorExit):
        shutil.rmtree(run_folder, ignore_errors=True)
        raise
    shutil.rmtree(run_folder, ignore_errors=True)


def _make_run_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="trt-mtp-serve-"))
    except OSError as error:
        raise TrtMtpError(f"can't make a temporary folder: {error}") from error


def describe(server: TritonServer, variants: Sequence[EngineVariant]) -> dict[str, Any]:
    """What `trt-mtp serve --json` prints when it is ready."""
    return {
        "schema_version": 1,
        "grpc": server.grpc_url,
        "http": server.http_url,
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
    """The key in `file`; one that is not there is made, readable by its owner alone."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as made:
                made.write(secrets.token_hex(16) + "\n")
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} can't be used for the admin key: {error}") from None
    if not re.fullmatch(r"[\x21-\x7e]{8,}", key):
        raise InputError(f"{file} holds no admin key: expected one word of 8 characters or more")
    return key
