"""Every form of input that the registered model takes becomes the same prompts."""

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from cluster.serve.pyfunc import decoding_of, prompts_of

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
