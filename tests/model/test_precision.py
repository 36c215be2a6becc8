"""Precision is asked of the machine."""

import pytest
import torch

from model import precision
from model.precision import choose, matmul_peak


@pytest.mark.parametrize("has", [True, False])
def test_auto_takes_bf16_only_where_the_processor_has_it_and_says_why(monkeypatch, has):
    monkeypatch.setattr(precision, "has_bf16", lambda device: (has, "this processor's reason"))
    dtype, reason = choose("auto")
    assert dtype == (torch.bfloat16 if has else torch.float32) and "this processor's reason" in reason
    dtype, reason = choose("bf16")
    assert dtype == torch.bfloat16 and ("slower" in reason) == (not has)
    assert choose("fp32")[0] == torch.float32


def test_the_question_has_an_answer_on_this_machine():
    assert "bf16" in choose("auto")[1]
    assert matmul_peak("cpu") > 1e8
