"""How many cores this process may use: those it may run on, within its container's quota."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # of the container, as its runtime mounts it


def usable_cores() -> int:
    """At least 1; a part of a core doesn't count, because threads beyond the quota wait for it."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota(CGROUPS)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _quota(cgroups: Path) -> float | None:
    """Cores that `docker run --cpus` or a pod's limit gives, None without a limit."""
    try:
        if (cgroups / "cpu.max").is_file():
            limit, period = (cgroups / "cpu.max").read_text().split()
        else:
            limit = (cgroups / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroups / "cpu/cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no cgroups here, or "max"
        return None
