"""Sampling from a masked-diffusion model: a text of [MASK]s after the prompt, revealed in a few forward passes.

    prompt + [MASK] * n
    repeat:  logits of the hidden tokens of the first unfinished block -> distribution -> draw each -> reveal the best
             of them and leave the others hidden        (LLaDA, arXiv 2502.09992, section 2.4: low-confidence remasking)

What is revealed stays. With one random token a pass this draws from the model's own any-order distribution
exactly; more tokens a pass are drawn as if independent. A row ends at its first stop token that has nothing hidden
before it. A row's result depends on its prompt, seed and length only, not on its batch (up to fp32 rounding):
draws are counter-based.

B rows; T tokens of prompt and text, N of a text alone; M hidden tokens whose logits are made; V ids, [MASK] not
among them.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from model.decoder import Decoder
from model.generate.batches import check_prompts, in_batches
from model.generate.decoding import GREEDY, Decoding
from model.generate.engine import Completion, Token
from model.generate.history import History
from model.generate.sampling import Alternatives, choose, uniform
from model.seeds import int64
from model.segments import Segments, pads_apart


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = GREEDY,
    seeds: Sequence[int] | None = None,
    batch_size: int = 128,
) -> list[Completion]:
    """A completion for each prompt, and ValueError, as from `engine.generate`.

    The text that is filled in has `max_new_tokens`, or as many as the model's `max_seq_len` leaves room for; what comes
    after its first stop token is cut off. Log-probabilities are those with which the tokens were revealed.
    """
    _check(model, prompts)
    completions = [Completion() for _ in prompts]
    for rows, chosen, batch_seeds in in_batches(prompts, decoding.seed if seeds is None else seeds, batch_size):
        for numbers, finals in _unmask(model, chosen, decoding, batch_seeds):
            for number, final in zip(numbers, finals, strict=True):
                completions[rows[number]] = final
    return completions


def stream(model: Decoder, prompt: Sequence[int], decoding: Decoding = GREEDY) -> Iterator[Token]:
    """The tokens of one completion in their order, each as soon as nothing before it is hidden."""
    _check(model, [prompt])
    shown = 0
    for _, (final,) in _unmask(model, [prompt], decoding, [decoding.seed]):
        yield from islice(final, shown, None)
        shown = len(final.tokens)


@torch.no_grad()
def _unmask(
    model: Decoder, prompts: Sequence[Sequence[int]], decoding: Decoding, seeds: Sequence[int]
) -> Iterator[tuple[list[int], list[Completion]]]:
    """After each pass: the rows that were at work, and their tokens that nothing hidden comes before."""
    device, limit, mask_id = model.embedding.weight.device, model.config.max_seq_len, model.config.mask_id
    assert mask_id is not None
    lengths = [min(decoding.max_new_tokens, limit - len(prompt)) for prompt in prompts]
    N = max(lengths, default=0)
    if N < 1:
        return
    passes = [decoding.passes(length) for length in lengths]
    prompt_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    length_B = torch.tensor(lengths, device=device)
    seed_B = torch.tensor([int64(seed) for seed in seeds], device=device)
    rows_B, places_N = torch.arange(len(prompts), device=device), torch.arange(N, device=device)
    tokens_BT = torch.zeros(len(prompts), int((prompt_B + length_B).max()), dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = torch.tensor(prompt, device=device)
    text_BN = torch.where(places_N < length_B[:, None], mask_id, 0)
    logprob_BN, sampled_BN = torch.zeros(text_BN.shape, device=device), torch.zeros(text_BN.shape, device=device)
    stops = torch.tensor(decoding.stop_ids, dtype=torch.long, device=device)
    top: dict[tuple[int, int], Alternatives] = {}  # of (row, place)
    for step in range(max(map(len, passes))):
        ends, totals = zip(*(passes[row][step] for row in rows_B.tolist()), strict=True)
        hidden_BN = text_BN == mask_id
        count_B = torch.tensor(totals, device=device) - (length_B - hidden_BN.sum(1))
        b_M, n_M = (hidden_BN & (places_N < torch.tensor(ends, device=device)[:, None])).nonzero(as_tuple=True)

        text = (places_N < length_B[:, None]).nonzero(as_tuple=True)
        tokens_BT[text[0], prompt_B[text[0]] + text[1]] = text_BN[text]
        positions_BT = pads_apart(prompt_B + length_B, tokens_BT.shape[1])
        states_BTD, _ = model(tokens_BT, segments=Segments.from_positions(positions_BT))
        logits_MV = model.logits(states_BTD[b_M, prompt_B[b_M] + n_M])[:, :-1]
        history = History(seed_B, prompt_B)
        if decoding.penalises:
            history.prompt_BV, history.output_BV = _counts(tokens_BT, positions_BT, prompt_B, mask_id)
        history = history.select(b_M)
        history.drawn_B = n_M  # its place is what a schedule and a minimum length mean here
        # A number for each place and pass; pass 0's are for the random order.
        drawn_M, logprob_M, sampled_M, top_M = choose(logits_MV, decoding, history, (step + 1) * limit + n_M)
        score_M = logprob_M.double() if decoding.order == "confidence" else uniform(seed_B[b_M], n_M)

        score_BN = torch.full(text_BN.shape, float("-inf"), dtype=torch.float64, device=device)
        score_BN[b_M, n_M] = score_M
        best_BN = score_BN.argsort(dim=1, descending=True, stable=True)
        rank_BN = torch.empty_like(best_BN).scatter_(1, best_BN, places_N.expand_as(best_BN))
        shown_M = rank_BN[b_M, n_M] < count_B[b_M]
        at = b_M[shown_M], n_M[shown_M]
        for m in shown_M.nonzero().squeeze(1).tolist() if top_M else ():
            top[int(rows_B[b_M[m]]), int(n_M[m])] = top_M[m]
        text_BN[at], logprob_BN[at] = drawn_M[shown_M], logprob_M[shown_M]
        sampled_BN[at] = sampled_M[shown_M]

        final_B, stopped_B = _final(text_BN, length_B, stops, mask_id)
        finals = []
        for i, (n, stopped) in enumerate(zip(final_B.tolist(), stopped_B.tolist(), strict=True)):
            tokens, logprobs, sampled = (x[i, :n].tolist() for x in (text_BN, logprob_BN, sampled_BN))
            beside = [top[int(rows_B[i]), place] for place in range(n)] if top else []
            finals.append(Completion(tokens, logprobs, sampled, "stop" if stopped else "length", beside))
        yield rows_B.tolist(), finals
        keep = (~stopped_B & (final_B < length_B)).nonzero().squeeze(1)
        if not keep.numel():
            return
        if keep.numel() < rows_B.numel():
            rows_B, prompt_B, length_B, seed_B = rows_B[keep], prompt_B[keep], length_B[keep], seed_B[keep]
            tokens_BT, text_BN, logprob_BN, sampled_BN = (x[keep] for x in (tokens_BT, text_BN, logprob_BN, sampled_BN))


def _final(text_BN: Tensor, length_B: Tensor, stops: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """(how many of each text's tokens come before a hidden one, up to a first stop token; whether that is the last)."""
    places_N, N = torch.arange(text_BN.shape[1], device=text_BN.device), text_BN.shape[1]
    stop_BN = torch.isin(text_BN, stops)
    end_BN = torch.where(stop_BN, places_N + 1, N).minimum(length_B[:, None])
    final_B = torch.where(text_BN == mask_id, places_N, end_BN).amin(1)
    last_B = (final_B - 1).clamp(min=0)
    return final_B, (final_B > 0) & stop_BN.gather(1, last_B[:, None]).squeeze(1)


def _counts(tokens_BT: Tensor, positions_BT: Tensor, prompt_B: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """(B, V) int32: how often each token is in each prompt; and, of what is revealed, in each text."""
    real_BT = Segments.from_positions(positions_BT).starts_BT.cumsum(1) == 1
    prompt_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < prompt_B[:, None]

    def of(kept_BT: Tensor) -> Tensor:
        counts = torch.zeros(len(tokens_BT), mask_id + 1, dtype=torch.int32, device=tokens_BT.device)
        return counts.scatter_add_(1, tokens_BT, kept_BT.int())[:, :-1]  # [MASK] is the last

    return of(real_BT & prompt_BT), of(real_BT & ~prompt_BT)


def _check(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    """ValueError if a prompt can't be continued."""
    mask_id = model.config.mask_id
    if mask_id is None:
        raise ValueError("a causal model is sampled token by token: use model.generate.engine")
    check_prompts(prompts, model.config.max_seq_len, 1, mask_id)
