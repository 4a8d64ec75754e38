"""A pytest plugin that ends a run which is stuck, and fails one that leaves a process behind."""

import sys

import pytest

from tests.watchdog import LIMIT_S, Watchdog

LEFT = "left_running"  # in what a worker of pytest-xdist tells the process that started it


class RunGuard:
    """Has the watchdog of this process, which may be a worker of pytest-xdist or have workers."""

    def __init__(self, config: pytest.Config, limit_s: float = LIMIT_S) -> None:
        """Everything started from now on belongs to the run."""
        has_workers = config.pluginmanager.has_plugin("dsession")
        # a stuck worker is ended by its own watchdog, and another one collects and takes its place
        self._watchdog = Watchdog(limit_s + LIMIT_S if has_workers else limit_s)
        self._left: list[str] = []

    def pytest_runtest_logstart(self) -> None:
        """A test begins."""
        self._watchdog.beat()

    def pytest_runtest_logreport(self) -> None:
        """A part of a test, fixtures included, ended: here or in a worker."""
        self._watchdog.beat()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """A worker ended; one that crashed has nothing to say."""
        self._left += getattr(node, "workeroutput", {}).get(LEFT, [])

    @pytest.hookimpl(trylast=True)  # after the workers' end
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A process that a test left running fails the run."""
        self._left += self._watchdog.left()
        self._watchdog.stop()
        if not self._left:
            return
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[LEFT] = self._left
            return
        print("\ntests left running:", *self._left, sep="\n  ", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
