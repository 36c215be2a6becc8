"""The registry of objectives: what is known without torch is true of the class behind the name."""

import subprocess
import sys

import pytest
import torch
from small_models import SMALL, lively, random_tokens

from model.config import ModelConfig
from model.errors import UserError
from model.objective import OBJECTIVES, for_models, objective_class, problem
from model.objectives.next_token import Batch
from model.train_config import TrainConfig
from model.trainer import train


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_model_of_the_right_kind_learns_by_its_name_alone(name):
    """On rows whose targets are as far ahead as the registry says."""
    kind, size, length = OBJECTIVES[name], 8, 12
    shape = ModelConfig(**SMALL, causal=kind.causal)
    config = TrainConfig(objective=name, steps=25, batch_size=size, seq_len=length, lr=1e-2, warmup_steps=2)
    objective = objective_class(name)(config, shape)

    def batches(step):
        tokens = random_tokens(size, 1, vocab_size=20, seed=step).expand(size, length + kind.ahead)
        rows = Batch(tokens[:, :length], tokens[:, kind.ahead :].clone(), torch.arange(length).expand(size, length))
        return objective.batch(rows, torch.arange(step * size, (step + 1) * size))

    losses = []
    train(lively(shape), batches, config, on_step=lambda report: losses.append(report.loss))
    assert min(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_model_of_the_wrong_kind_is_refused_with_what_would_suit(name):
    kind = OBJECTIVES[name]
    assert problem(name, kind.causal) is None
    others = [other for other, o in OBJECTIVES.items() if o.causal != kind.causal]
    said = problem(name, not kind.causal)
    assert said and f"needs model.causal = {str(kind.causal).lower()}" in said and all(f'"{o}"' in said for o in others)


def test_a_causal_model_has_a_likelihood_and_another_a_bound():
    assert [for_models(causal).likelihood for causal in (True, False)] == ["exact", "bound"]
    assert [for_models(causal).generates for causal in (True, False)] == ["causal", "unmasking"]


def test_a_name_that_is_not_registered_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'next_token'"):
        TrainConfig(objective="next_tokens")


def test_reading_a_config_imports_no_torch():
    code = "import sys, model.train_config, model.objective; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
