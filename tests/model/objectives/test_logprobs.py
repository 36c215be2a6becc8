"""Log-probabilities of given tokens against log_softmax of all logits."""

import pytest
import torch
from small_models import random_tokens

from model.objectives import next_token
from model.objectives.logprobs import sequence_logprobs, token_logprobs


@pytest.fixture(params=[7, 1000], ids=["chunks of 7", "one chunk"], autouse=True)
def chunk(request, monkeypatch):
    monkeypatch.setattr(next_token, "CHUNK_ROWS", request.param)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_values_and_gradients_equal_log_softmax(softcap):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator, requires_grad=True)
    weight = torch.randn(51, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 51, (40,), generator=generator)
    upstream = torch.randn(40, generator=generator)
    logits = hidden @ weight.t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    given = token_logprobs(hidden, weight, targets, softcap)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad((given * upstream).sum(), (hidden, weight))
    theirs = torch.autograd.grad((expected * upstream).sum(), (hidden, weight))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_no_tokens_give_no_logprobs():
    weight = torch.randn(51, 8, requires_grad=True)
    assert token_logprobs(torch.randn(0, 8), weight, torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_a_sequence_is_scored_where_the_mask_says(model):
    tokens = random_tokens(3, 12)
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[0, 4:7], mask[1, 1:] = True, True
    given = sequence_logprobs(model, tokens, mask)
    hidden, _ = model(tokens)
    distribution = model.logits(hidden).log_softmax(-1)
    expected = torch.zeros(3, 12)
    expected[:, 1:] = distribution[:, :-1].gather(2, tokens[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(given, expected * mask, rtol=1e-4, atol=1e-4)


def test_right_padding_changes_no_score(causal_model):
    model = causal_model
    tokens, mask = random_tokens(1, 9), torch.ones(1, 9, dtype=torch.bool)
    mask[:, 0] = False
    alone = sequence_logprobs(model, tokens, mask)
    padded = sequence_logprobs(
        model, torch.cat((tokens, random_tokens(1, 5, seed=1)), 1), torch.cat((mask, mask.new_zeros(1, 5)), 1)
    )
    torch.testing.assert_close(alone, padded[:, :9], rtol=1e-5, atol=1e-5)


def test_scoring_a_first_token_is_refused(model):
    with pytest.raises(ValueError, match="first token"):
        sequence_logprobs(model, random_tokens(1, 4), torch.ones(1, 4, dtype=torch.bool))
