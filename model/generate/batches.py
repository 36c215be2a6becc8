"""Prompts before they are generated from: what can't be continued is refused, the rest is cut into batches."""

from collections.abc import Iterator, Sequence

from model.errors import UserError


def check_prompts(prompts: Sequence[Sequence[int]], limit: int, room: int, pieces: int) -> None:
    """ValueError for a prompt that is empty, leaves less than `room` of `limit` tokens, or has an id past `pieces`."""
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {row} is empty: it needs at least one token, e.g. the beginning-of-sequence id")
        if len(prompt) + room > limit:
            raise UserError(f"prompt {row} has {len(prompt)} tokens, but the model's max_seq_len is {limit}: cut it")
        if min(prompt) < 0 or max(prompt) >= pieces:
            raise ValueError(f"prompt {row} has a token outside the vocabulary (0 to {pieces - 1})")


def in_batches(
    prompts: Sequence[Sequence[int]], seed: int | Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], list[Sequence[int]], list[int]]]:
    """(numbers of rows, their prompts, their seeds) of each batch.

    Rows of like length share one, so that little of it is padding. seed: one for each row, or one number s that gives
    row i the seed s + i; ValueError for another count.
    """
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one for each, or a single number")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, [prompts[i] for i in rows], [seeds[i] for i in rows]
