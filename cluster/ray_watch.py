"""Whether Ray still lives. Its own way to say that it doesn't is to end this process.

    raylet killed   a call that waits for a task waits for ever
    GCS killed      after a minute of asking, Ray's C++ ends the driver: exit code 1, no exception, no line

So a thread waits for the end of both processes, which it sees at once, or looks at the head's port of a cluster that
was joined; it then interrupts the main thread, whatever that waits for, and `during` raises RayLost there. A new Ray
can be started in the same process. Where the main thread is in a call into Ray that nothing interrupts, the process is
ended.

A worker that dies is replaced by Ray without a word: `lost_workers` has its name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import psutil

from cluster.errors import Stopped, UserError

LOOK_SECONDS = 0.5
IDLE_SECONDS = 20.0
AGAIN_SECONDS = 2.0  # an interrupt that came while an exception was being dropped is sent again
HEAD_SECONDS = 30.0  # without an answer: a head may be restarted, and Ray's C++ waits for a minute
CONNECT_SECONDS = 2.0  # between two looks at it, each of which is a connection
STUCK_SECONDS = 90.0  # in which the main thread hears of a loss, and in which a lost Ray is put away
DEAF_SECONDS = 10.0  # without a connection to a GCS of this machine
LOCKING = ("importlib", "logging")
GRACE_SECONDS = 2.0  # in which the process's end is seen, after what came of it
# Unlike others it does nothing where nobody waits for it, and means nothing to a batch system.
INTERRUPT = signal.SIGURG
# How long Ray's other processes ask for a GCS that is gone, before they end: twice its default, so that a slow machine
# has the time to end them in order. (This one's own patience: ray_local.py.)
SYSTEM_CONFIG = {"gcs_rpc_server_reconnect_timeout_s": 120}
NAMES = {"raylet": "raylet", "gcs_server": "GCS"}
_log = logging.getLogger(__name__)


class RayLost(ConnectionError):
    """Ray has ended under a stage. `again`: whether the recipe allows another attempt."""

    def __init__(self, problem: str, again: bool):
        super().__init__(problem)
        self.again = again


class Watch:
    """Watches the processes of a Ray until `stop`.

    Args:
        processes: by Ray's names for them, of which NAMES are looked at.
        idle: called once, in a thread, if one has ended and nothing runs in `during` for IDLE_SECONDS.
        head: host and port of the GCS, which may live on without listening any more: so it does after SIGTERM.
    """

    def __init__(
        self,
        processes: Mapping[str, subprocess.Popen[Any]],
        idle: Callable[[], None] = lambda: None,
        head: tuple[str, int] | None = None,
    ):
        self._head, self._deaf, self._next, self._answered = head, "", time.monotonic(), time.monotonic()
        self._processes = {NAMES[name]: process for name, process in processes.items() if name in NAMES}
        self._idle, self._stopped = idle, threading.Event()
        self._ends = select.poll()
        # The raylet's, workers and agents. They are known by descent: an agent has its name only once it is up.
        self._children: set[psutil.Process] = set()
        self._waiting = False  # the main thread is within `during`
        self._locked = 0  # what `_locked` was at its beginning
        self._thread = threading.Thread(target=self._look, name="ray-watch", daemon=True)
        self._thread.start()

    def problem(self) -> str:
        """What has ended, in a sentence; "" while all lives."""
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                how = f"was ended by {_name_of(-code)}" if code < 0 else f"ended with code {code}"
                memory = " (which is also what the system does when memory runs out)" if code == -signal.SIGKILL else ""
                return f"Ray's {name} on this machine, process {process.pid}, {how}{memory}."
        return self._deaf

    def _see(self) -> str:
        """The same, after a look; the thread's own."""
        now = time.monotonic()
        if self._head and now >= self._next:
            self._next = now + CONNECT_SECONDS
            if not silence(self._head):
                self._answered = now
            elif now - self._answered > DEAF_SECONDS:
                number = next((p.pid for name, p in self._processes.items() if name == "GCS"), 0)
                self._deaf = f"Ray's GCS on this machine, process {number}, does not listen any more."
        return self.problem()

    def settled(self) -> str:
        """The problem, once it is known whether there is one: a head that is silent is waited for, or found deaf."""
        while not (problem := self.problem()) and self._head and silence(self._head):
            time.sleep(0.1)
        return problem

    def stop(self) -> None:
        """Before Ray is ended on purpose."""
        self._stopped.set()

    def see_children(self) -> None:
        """Know what the raylet has started by now; to be asked while it lives."""
        if "raylet" in self._processes:
            with contextlib.suppress(psutil.Error):
                self._children.update(psutil.Process(self._processes["raylet"].pid).children())

    def end_children(self) -> None:
        """End what Ray doesn't end where its raylet is gone: its agents would look for it for minutes."""
        for child in list(self._children):  # the thread may be within its last look
            with contextlib.suppress(psutil.Error):
                child.kill()  # unless its number is another's by now

    @contextlib.contextmanager
    def during(self, again: bool) -> Iterator[None]:
        """What runs within this is interrupted when Ray ends.

        Raises:
            RayLost: it has ended; instead of whatever came of that.
        """
        here = threading.current_thread() is threading.main_thread()
        self._locked = _locked(sys._getframe())
        old = signal.signal(INTERRUPT, self._interrupt) if here else None
        self._waiting = here
        try:
            if self.problem():
                raise ConnectionError("before anything began")
            yield
        except BaseException as error:
            self._waiting = False
            problem = self._problem_behind(error)
            if not problem:
                raise
            raise RayLost(problem, again) from error
        finally:
            self._waiting = False
            if here:
                signal.signal(INTERRUPT, signal.SIG_DFL if old is None else old)

    def _problem_behind(self, error: BaseException) -> str:
        """What an error came of, if that was Ray's end: it may be seen a moment later than what it does."""
        ends = time.monotonic() + (GRACE_SECONDS if type(error).__module__.startswith("ray.") else 0.0)
        while not (problem := self.problem()) and time.monotonic() < ends:
            time.sleep(0.1)
        return problem

    def _interrupt(self, _number: int, frame: FrameType | None) -> None:
        if self._waiting and self.problem() and _locked(frame) <= self._locked:  # else at the next interrupt
            raise KeyboardInterrupt  # which Ray's calls, and nothing of ours, let through

    def _look(self) -> None:
        with contextlib.ExitStack() as at_end:
            for process in self._processes.values():
                with contextlib.suppress(AttributeError, OSError):  # no Linux, or it has ended
                    descriptor = os.pidfd_open(process.pid)
                    at_end.callback(os.close, descriptor)
                    self._ends.register(descriptor, select.POLLIN)
            self._wait_for_end()
        self._interrupt_main()

    def _wait_for_end(self) -> None:
        """Look now and then, and as soon as a process ends: the driver's next call into a lost Ray may be its last."""
        while not self._stopped.is_set():
            self._ends.poll(1000 * LOOK_SECONDS)
            problem = self._see()
            if problem and not self._stopped.is_set():
                _log.error("%s", problem)
                break
            self.see_children()

    def _interrupt_main(self) -> None:
        quiet = stuck = 0.0
        while not self._stopped.is_set() and quiet < IDLE_SECONDS:
            stuck = stuck + AGAIN_SECONDS if self._waiting else 0.0
            if stuck > STUCK_SECONDS:
                end_process(self.problem())
            if self._waiting:
                signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)
            quiet = 0.0 if self._waiting else quiet + AGAIN_SECONDS
            self._stopped.wait(AGAIN_SECONDS)
        if not self._stopped.is_set():
            self._idle()


class HeadWatch(Watch):
    """Watches the head of a cluster that was joined, by its port.

    Args:
        idle: as above.
    """

    def __init__(self, host: str, port: int, idle: Callable[[], None] = lambda: None):
        self._place, self._problem = (host, port), ""
        self._answered = self._next = time.monotonic()
        super().__init__({}, idle)

    def problem(self) -> str:
        return self._problem

    def _see(self) -> str:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + CONNECT_SECONDS
            why = silence(self._place)
            if not why:
                self._answered = now
            elif now - self._answered > HEAD_SECONDS:
                self._tell(f"has not answered for {HEAD_SECONDS:.0f} s", why)
        return self._problem

    def _problem_behind(self, error: BaseException) -> str:
        """As above; what has failed at a head that is silent has failed by that, and need not wait for more."""
        if isinstance(error, Stopped | UserError):  # which Ray's end doesn't bring about
            return ""
        if not self._problem and (why := silence(self._place)):
            self._tell("does not answer", why)
        return self._problem

    def _tell(self, what: str, why: str) -> None:
        host, port = self._place
        self._problem = (
            f"The head of the Ray cluster at {host}:{port} {what} ({why}). Start it again, or take its address away to "
            "use this machine."
        )


@contextlib.contextmanager
def ends_within(seconds: float, problem: str) -> Iterator[None]:
    """What runs within this takes no longer: else the process is ended."""
    timer = threading.Timer(seconds, end_process, [problem])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_process(problem: str) -> None:
    """End this process, which is in a call into a lost Ray that never returns; flows/last_words.py says so."""
    _log.error("%s This process waits for it in a call that nothing interrupts, and is ended.", problem)
    logging.shutdown()
    os._exit(1)


def lost_workers() -> dict[str, str]:
    """The workers of this process's Ray job that were killed or crashed: Ray's id of each -> which, in words.

    Asks Ray's head, in milliseconds. None are known where Ray is reached by `ray://`, from outside its cluster.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2
    from ray.util.client import ray as client

    if client.is_connected():
        return {}
    rows: Any = gcs_pb2  # generated: no type checker sees their names
    kinds: Any = common_pb2
    job, found = ray.get_runtime_context().get_job_id(), {}
    for text in state._connect_and_get_accessor().get_worker_table():
        worker = rows.WorkerTableData.FromString(text)
        crashed = worker.exit_type in (kinds.SYSTEM_ERROR, kinds.NODE_OUT_OF_MEMORY)
        if not worker.is_alive and worker.worker_type == kinds.WORKER and worker.job_id.hex() == job and crashed:
            memory = worker.exit_type == kinds.NODE_OUT_OF_MEMORY
            why = "Ray ended it, because memory ran out" if memory else "it was killed or crashed"
            found[worker.worker_address.worker_id.hex()] = f"process {worker.pid}: {why}"
    return found


def silence(place: tuple[str, int]) -> str:
    """Why nothing answers there; "" where something does: a process that is held, too, by its kernel."""
    try:
        socket.create_connection(place, timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _locked(frame: FrameType | None) -> int:
    """How many frames from this one outwards are of modules that hold a lock of the whole process, and could keep it.

    An exception out of a signal may come between their taking it and their `try`.
    """
    count = 0
    while frame is not None:
        count += frame.f_globals.get("__name__", "").partition(".")[0] in LOCKING
        frame = frame.f_back
    return count


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
