"""Where tritonserver is: $TRITONSERVER, a local install, or the nvidia-pytriton wheel."""

import ctypes.util
import importlib.util
import os
import re
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from trt_mtp.errors import InputError, TrtMtpError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"
LOCAL_SERVERS = (Path("/opt/tritonserver/bin/tritonserver"),)  # NVIDIA's containers


@dataclass(frozen=True, slots=True)
class TritonInstall:
    """A tritonserver whose python backend runs this Python version."""

    server: Path
    backend_files: tuple[Path, ...]  # what the folder backends/python must hold
    library_folders: tuple[Path, ...] = ()

    @property
    def stub(self) -> Path:
        """The program that runs a Python model."""
        return next(file for file in self.backend_files if file.name == STUB)

    def link_backends(self, folder: Path) -> None:
        """Make `folder` a backend directory for this server: links, and a copy of the stub.

        Triton makes a stub that doesn't start executable for its owner, and for nobody else: by a
        link, a root that starts it once would take it from all others. Raises TrtMtpError for one
        that this user can't run.
        """
        python = folder / "python"
        python.mkdir(parents=True, exist_ok=True)
        for file in self.backend_files:
            link = python / file.name
            link.unlink(missing_ok=True)
            if file.name != STUB or not _copied(file, link):
                link.symlink_to(file)


def _copied(stub: Path, copy: Path) -> bool:
    """Copy `stub`; false, and nothing is copied, where programs can't be run from."""
    if not os.access(stub, os.R_OK | os.X_OK):
        raise TrtMtpError(
            f"this user can't run {stub}, Triton's program for Python models; its owner can mend "
            f"that: chmod 755 {shlex.quote(str(stub))}"
        )
    shutil.copyfile(stub, copy)
    copy.chmod(0o755)
    if os.access(copy, os.X_OK):
        return True
    copy.unlink()  # the file system is mounted noexec
    return False


def find_triton() -> TritonInstall:
    """The tritonserver to use.

    Raises InputError if $TRITONSERVER is wrong or there is none, TrtMtpError when the one in
    nvidia-pytriton can't run.
    """
    named = os.environ.get("TRITONSERVER")
    if named:
        return _named_install(Path(named))
    on_path = shutil.which("tritonserver")
    for server in (*LOCAL_SERVERS, *([Path(on_path)] if on_path else [])):
        if server.is_file() and _stub_python(_stub_of(server)) == PYTHON:
            return _local_install(server)
    install = _wheel_install()
    if install is None:
        raise InputError(
            "tritonserver not found: set TRITONSERVER to its path, or pip install 'trt-mtp[triton]'"
        )
    return install


def _named_install(server: Path) -> TritonInstall:
    if not (server.is_file() and os.access(server, os.X_OK)):
        raise InputError(f"TRITONSERVER is {server}, which is not a program that can be run")
    if not _stub_of(server).is_file():
        raise InputError(
            f"TRITONSERVER is {server}, which has no python backend: {_stub_of(server)} is missing"
        )
    version = _stub_python(_stub_of(server))
    if version != PYTHON:
        raise InputError(
            f"the python backend of {server} is made for Python {version}, and trt-mtp runs on "
            f"{PYTHON}; run trt-mtp with Python {version}, or unset TRITONSERVER"
        )
    return _local_install(server)


def _local_install(server: Path) -> TritonInstall:
    return TritonInstall(server, tuple(sorted(_stub_of(server).parent.iterdir())))


def _stub_of(server: Path) -> Path:
    return server.resolve().parent.parent / "backends" / "python" / STUB


def _stub_python(stub: Path) -> str:
    """The Python version that a stub is linked with, as "3.12"; empty if unknown."""
    try:
        match = re.search(rb"libpython(3\.\d+)", stub.read_bytes())
    except OSError:
        return ""
    return match[1].decode() if match else ""


def _wheel_install() -> TritonInstall | None:
    """The tritonserver in nvidia-pytriton, which has one stub for each Python version."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(next(iter(spec.submodule_search_locations)))
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / PYTHON / STUB
    if not stub.is_file():
        raise TrtMtpError(f"nvidia-pytriton has no python backend for Python {PYTHON} ({stub})")
    libraries = package.parent / "nvidia_pytriton.libs"
    backend = root / "backends" / "python"
    files = (backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub)
    return TritonInstall(root / "bin" / "tritonserver", files, (libraries, *_python_library()))


def _python_library() -> tuple[Path, ...]:
    """The folder of the shared libpython that the stub needs, unless the loader finds it."""
    if sys.version_info >= (3, 13):
        return ()  # comes with the wheel
    name = f"libpython{PYTHON}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR") or "", f"{sys.prefix}/lib"):
        if (Path(folder) / name).is_file():
            return (Path(folder),)
    if ctypes.util.find_library(f"python{PYTHON}"):
        return ()
    raise TrtMtpError(
        f"Triton's python backend needs {name}, which this system lacks; "
        f"install it (Debian, Ubuntu: apt-get install libpython{PYTHON})"
    )
