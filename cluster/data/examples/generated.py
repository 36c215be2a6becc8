"""Data made by code: `generated://NAME?n=2000&seed=1&split=train&…`, the same for the same address.

    NAME         parameters (defaults)                       see
    arithmetic   digits=2, ops=add|sub|add,sub, cot=1.0      puzzles.py
    parity       bits=12, cot=1.0                            puzzles.py
    sort         length=6                                    puzzles.py
    reverse      length=6                                    puzzles.py
    signatures   packages=stdlib, kind=all                   signatures.py

Each problem can be had in four forms: a chat example with a worked answer, a verifiable task, a multiple-choice item,
and a preference. Whether a problem is held out depends on a hash of itself alone (one in ten is), never on seed or n:
no held-out problem is in any training set of that name, whatever its address.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cluster.data.examples.puzzles import Arithmetic, Parity, Problem, Reverse, Sort, final
from cluster.data.examples.signatures import Signatures
from cluster.data.held_out import one_in
from cluster.data.readers import installed
from cluster.errors import UserError, did_you_mean, nearest

SCHEME = "generated://"
VERSION = 1  # of what the addresses mean: a change to any generator's output bumps it
SPLITS = ("train", "heldout")
HELD_OUT = 10  # one problem in so many
MOST = 1_000_000  # problems of one address, of about a kilobyte each
EXHAUSTED = 1000  # draws of the split in a row that bring nothing new: a small family has no more
GENERATORS: dict[str, type] = {
    "arithmetic": Arithmetic,
    "parity": Parity,
    "sort": Sort,
    "reverse": Reverse,
    "signatures": Signatures,
}


@dataclass(frozen=True)
class Address:
    """A parsed address."""

    name: str
    generator: Any
    n: int = 1000
    seed: int = 0
    split: str = "train"


def parse(url: str) -> Address:
    """Raises ValueError: no such generator or parameter, or a value that it doesn't take."""
    parts = urlsplit(url)
    name = parts.netloc
    if parts.scheme != "generated" or name not in GENERATORS or parts.path.strip("/"):
        near = nearest(name, GENERATORS)
        hint = f" Did you mean {SCHEME}{near[0]}?" if near else ""
        raise UserError(f"{url!r}: there is no such generator; there are {', '.join(GENERATORS)}.{hint}")
    generator = GENERATORS[name]
    common = {f.name: f for f in fields(Address) if f.name not in ("name", "generator")}
    own = {f.name: f for f in fields(generator)}
    values: dict[str, Any] = {}
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        if key not in common and key not in own:
            known = [*common, *own]
            raise UserError(
                f"{url!r}: unknown parameter {key!r}; known are {', '.join(known)}.{did_you_mean(key, known)}"
            )
        values[key] = _value(url, key, text, (common.get(key) or own[key]).default)
    try:
        made = generator(**{k: v for k, v in values.items() if k in own})
    except UserError as error:
        raise UserError(f"{url!r}: {error}.") from None
    address = Address(name, made, **{k: v for k, v in values.items() if k in common})
    if not 1 <= address.n <= MOST:
        raise UserError(f"{url!r}: n is {address.n}; it must be 1 or more, and {MOST:,} at most: all are in memory.")
    if address.split not in SPLITS:
        raise UserError(f"{url!r}: split must be train or heldout, not {address.split!r}.")
    return address


def _value(url: str, key: str, text: str, default: Any) -> Any:
    kind = type(default)
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{url!r}: {key} must be a {kind.__name__}, not {text!r}.") from None


def digest(url: str) -> str:
    """A hash of all that decides what the address gives; the installed files too, where it reads them."""
    address = parse(url)
    state = f"{VERSION}|{address}"
    if isinstance(address.generator, Signatures):
        state += installed.digest(f"installed://code?packages={address.generator.packages}")
    return hashlib.sha256(state.encode()).hexdigest()


def problems(url: str) -> list[Problem]:
    """The problems of an address, no two the same; fewer than n where there are not so many."""
    address = parse(url)
    # Without n: an address with more problems starts with those of the same address with fewer.
    rng = random.Random(f"{VERSION}|{address.generator}|{address.seed}|{address.split}")
    source = _on_functions(address, rng) if isinstance(address.generator, Signatures) else _drawn(address, rng)
    found: dict[tuple[str, str], Problem] = {}
    stale = 0
    for problem in source:
        size = len(found)
        found.setdefault((problem.key, problem.question), problem)
        stale = 0 if len(found) > size else stale + 1
        if len(found) == address.n or stale == EXHAUSTED:
            break
    if not found:
        raise UserError(f"{url!r}: there is no problem in the split {address.split!r}.")
    return list(found.values())


def held_out(name: str, key: str) -> bool:
    """Whether a problem is held out: a function of the problem alone."""
    return one_in(HELD_OUT, f"{name}|{key}", salt="")


def _drawn(address: Address, rng: random.Random) -> Iterator[Problem]:
    wanted = address.split == "heldout"
    for _ in range(HELD_OUT * (EXHAUSTED + 20 * address.n)):
        problem = address.generator.problem(rng)
        if held_out(address.name, problem.key) == wanted:
            yield problem


def _on_functions(address: Address, rng: random.Random) -> Iterator[Problem]:
    wanted = address.split == "heldout"
    functions = [f for f in address.generator.functions() if held_out(address.name, f.summary) == wanted]
    rng.shuffle(functions)
    per_function = [address.generator.problems(f, rng, functions) for f in functions]
    for turn in range(max(map(len, per_function), default=0)):  # a first question on each, then a second, …
        for number, of_one in enumerate(per_function):
            if of_one:
                kind = (turn + number) % len(of_one)
                yield of_one[kind]


def chat_examples(url: str) -> list[dict[str, Any]]:
    """[{"messages": [user's question, assistant's worked answer]}]."""
    return [{"messages": [*_asked(p), {"role": "assistant", "content": p.worked}]} for p in problems(url)]


def tasks(url: str) -> list[dict[str, Any]]:
    """[{"messages": [user's question], "answer", "verifier"}], see rewards.verify."""
    return [{"messages": _asked(p), "answer": p.answer, "verifier": p.verifier} for p in problems(url)]


def choices(url: str) -> list[dict[str, Any]]:
    """[{"messages", "prompt", "choices": […], "answer": index}].

    The choices continue the prompt, or are the assistant's turn after the messages.
    """
    items = []
    for problem in problems(url):
        rng = random.Random(f"choices|{problem.key}|{problem.question}")
        texts = [problem.answer, *problem.wrong]
        rng.shuffle(texts)
        right = texts.index(problem.answer)
        if problem.verifier in ("number", "answer"):
            texts = [final(text) for text in texts]
        prompt = problem.prompt if problem.prompt is not None else f"{problem.question}\n"
        items.append({"messages": _asked(problem), "prompt": prompt, "choices": texts, "answer": right})
    return items


def preferences(url: str) -> list[dict[str, Any]]:
    """[{"messages", "chosen", "rejected"}]: the worked answer, and one that goes to a wrong end."""
    pairs = []
    for problem in problems(url):
        if not problem.wrong:
            continue
        wrong = problem.wrong[0]
        end = final(problem.answer)
        rejected = problem.worked.removesuffix(end) + final(wrong) if problem.worked.endswith(end) else wrong
        pairs.append({"messages": _asked(problem), "chosen": problem.worked, "rejected": rejected})
    return pairs


def _asked(problem: Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question}]
