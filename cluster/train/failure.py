"""An exception on a worker, carried to the driver: what it was, what it was raised from, and its traceback.

    worker   except error: board.fail(Failure.of(rank, error))      plain bytes and text, whatever the exception holds
    driver   raise failure.error()                                  the same exception again, RemoteTraceback its cause

An exception that can't be pickled comes back as a RuntimeError under its own name. Python's pickle drops `__cause__`,
which tells a store that was away from a bug, so each link of the chain travels by itself.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from cluster.errors import UserError


class RemoteTraceback(Exception):
    """The traceback of another process, as text, for the log."""


@dataclass(frozen=True)
class Link:
    """One exception of a chain."""

    module: str
    name: str
    words: str
    user: bool  # a UserError
    pickled: bytes | None

    @classmethod
    def of(cls, error: BaseException) -> Link:
        from ray import cloudpickle

        kind = type(error)
        try:
            pickled = cloudpickle.dumps(error)
            if str(cloudpickle.loads(pickled)) != str(error):  # a class whose __init__ takes other arguments
                pickled = None
        except Exception:
            pickled = None
        return cls(kind.__module__, kind.__qualname__, str(error), isinstance(error, UserError), pickled)

    def error(self) -> BaseException:
        from ray import cloudpickle

        if self.pickled is not None:
            try:
                return cloudpickle.loads(self.pickled)
            except Exception:  # its module isn't here
                pass
        if self.user:
            return UserError(self.words)
        return type(self.name, (RuntimeError,), {"__module__": self.module})(self.words)


@dataclass(frozen=True)
class Failure:
    """What ended the run: an exception on one rank."""

    rank: int
    links: tuple[Link, ...]  # the exception, what it was raised from, and so on
    traceback: str

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        text = "".join(traceback.format_exception(error))
        return cls(rank, tuple(map(Link.of, _chain(error))), text)

    def error(self) -> BaseException:
        """The exception again, with its chain; at the end of that the worker's traceback."""
        first, *rest = [link.error() for link in self.links]
        last = first
        for error in (*rest, RemoteTraceback(f"training worker of rank {self.rank}\n\n{self.traceback}")):
            last.__cause__ = error
            last = error
        return first


def is_echo(error: BaseException) -> bool:
    """Whether the error only says that another rank has gone: it was raised in a collective of torch.distributed."""
    return isinstance(error, RuntimeError) and any(
        frame.tb_frame.f_globals.get("__name__", "").startswith("torch.distributed")
        for frame in _frames(error.__traceback__)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _frames(frame: TracebackType | None) -> Iterator[TracebackType]:
    while frame is not None:
        yield frame
        frame = frame.tb_next
