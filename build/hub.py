"""A checkpoint's folder from what a user writes: a path, or a model id in the local cache.

Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

import os
import re
from pathlib import Path

from trt_mtp.errors import InputError
from trt_mtp.files import SMALL, read_text

MODEL_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")


def resolve_checkpoint(name: str) -> Path:
    """The folder of `name`: a path, or `ORG/NAME` or `ORG/NAME@REVISION` in the local cache.

    Raises InputError with the command that downloads it when it is in neither place.
    """
    path = Path(os.path.expanduser(name))  # which leaves a user that is unknown as it is
    if path.exists():
        return path
    match = MODEL_ID.fullmatch(name)
    if match is None or name.startswith("."):
        return path  # read_checkpoint says what is wrong with it
    model_id, revision = match["id"], match["revision"] or "main"
    repository = cache_folder() / f"models--{model_id.replace('/', '--')}"
    for commit in (read_ref(repository, revision), revision):
        snapshot = repository / "snapshots" / commit if commit else None
        if snapshot is not None and snapshot.is_dir():
            return snapshot
    download = f"hf download {model_id}" + (f" --revision {revision}" if match["revision"] else "")
    raise InputError(
        f"{name} is neither a folder nor in the Hugging Face cache ({cache_folder()}); "
        f"run `{download}`"
    )


def cache_folder() -> Path:
    """Where huggingface_hub keeps downloads: HF_HUB_CACHE, or hub/ in HF_HOME."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if own:
        return Path(os.path.expanduser(own))
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.path.expanduser(home)) / "hub"


def read_ref(repository: Path, revision: str) -> str | None:
    """The commit that a branch or tag stood for when it was downloaded."""
    try:
        return read_text(repository / "refs" / revision, SMALL).strip() or None
    except InputError:
        return None
