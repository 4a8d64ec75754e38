"""What `pip install trt-mtp` leaves out, and the sentence for who needs it."""

from importlib.util import find_spec

from trt_mtp.errors import InputError

# extra of pyproject.toml -> the modules that are imported of what it brings
EXTRAS = {
    "cpu": ("jinja2", "llguidance", "numba", "rich", "tokenizers"),
    "nvidia": ("jinja2", "tensorrt_llm", "tokenizers"),
    "plan": ("scipy",),
    "redis": ("redis",),
    "report": ("jinja2", "matplotlib"),
    "vllm": ("jinja2", "tokenizers", "vllm"),
}
ENGINE_EXTRAS = {"cpu": "cpu", "tensorrt-llm": "nvidia"}  # vllm has an environment of its own


def require_extras(user: str, *extras: str) -> None:
    """Raise InputError with the pip command when something that `user` needs isn't installed.

    Call it before any work starts; nothing is imported.
    """
    missing = [extra for extra in extras if not all(map(is_installed, EXTRAS[extra]))]
    if missing:
        names = f"{' and '.join(missing)} extra{'s' if len(missing) > 1 else ''}"
        raise InputError(f"{user} needs the {names}: pip install 'trt-mtp[{','.join(missing)}]'")


def require_engine(kind: str) -> None:
    """Raise InputError with the pip command when engines of `kind` can't run here."""
    if kind in ENGINE_EXTRAS:  # another kind is refused where it is opened
        require_extras(f"the {kind} engine", ENGINE_EXTRAS[kind])


def is_installed(module: str) -> bool:
    """Whether the top-level `module` can be imported."""
    return find_spec(module) is not None
