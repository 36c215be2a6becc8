"""Every form of input that the registered model takes becomes the same prompts."""

from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from cluster.serve.pyfunc import TYPES, decoding_of, prompts_of, refuse_unknown_params

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (pd.Series(["a", "b"]), ["a", "b"]),
        ([], []),
        (CHAT, [CHAT]),
        ([CHAT, CHAT], [CHAT, CHAT]),
        ({"messages": CHAT}, [CHAT]),
        ({"messages": [CHAT, CHAT]}, [CHAT, CHAT]),
        ({"prompt": "a"}, ["a"]),
        ({"prompt": ["a", "b"]}, ["a", "b"]),
        (CHAT[1], [[CHAT[1]]]),
        ([{"messages": CHAT}, "a"], [CHAT, "a"]),
        (pd.DataFrame({"prompt": ["a", "b"]}), ["a", "b"]),
        (pd.DataFrame({0: ["a", "b"]}), ["a", "b"]),
        (pd.DataFrame({"messages": [CHAT, CHAT]}), [CHAT, CHAT]),
        (pd.DataFrame({"messages": ['[{"role": "user", "content": "Hi"}]']}), [[CHAT[1]]]),
        (pd.DataFrame({"prompt": ["a", None], "messages": [None, CHAT]}), ["a", CHAT]),
        (pd.DataFrame(CHAT), [CHAT]),
    ],
)
def test_prompts_of(given, prompts):
    assert prompts_of(given) == prompts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "A int is no prompt"),
        (None, "no prompt"),
        ({"text": "a"}, "needs 'messages' or 'prompt'"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "the columns a, b"),
        (pd.DataFrame({"prompt": [None], "messages": [None]}), "A row has nothing"),
    ],
)
def test_what_is_no_prompt_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        prompts_of(given)


def test_an_option_that_is_not_there_is_refused_with_the_nearest():
    assert decoding_of({"top_k": 3, "stops": ["a"]}).top_k == 3
    with pytest.raises(MlflowException, match=r"No parameter 'tempreature'\. Did you mean 'temperature'"):
        decoding_of({"tempreature": 0.5})


def test_a_misspelt_parameter_of_ours_is_refused_by_mlflow_however_often_the_file_is_run(monkeypatch):
    asked = []

    def _enforce_params_schema(params, schema):  # MLflow's own: it leaves out what it doesn't know
        asked.append(params)
        return {}

    monkeypatch.setattr(mlflow.pyfunc, "_enforce_params_schema", _enforce_params_schema)
    refuse_unknown_params()
    once = mlflow.pyfunc._enforce_params_schema
    refuse_unknown_params()
    assert mlflow.pyfunc._enforce_params_schema is once
    ours, theirs = (SimpleNamespace(params=[SimpleNamespace(name=n) for n in names]) for names in (TYPES, ["top_k"]))
    with pytest.raises(MlflowException, match="Did you mean 'temperature'"):
        once({"tempreature": 0.5}, ours)
    assert once({"tempreature": 0.5}, theirs) == once({"top_k": 3}, ours) == {} and len(asked) == 2
