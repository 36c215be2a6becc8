"""The model as MLflow runs it: a "model from code", so nothing of it is pickled.

MLflow copies this file beside the weights and executes it when the model is loaded, in a process where `tokenmill`
is installed; everything else is imported from there. Takes, and answers with a list of strings, one for each prompt:

    "text"   ["text", …]                                          completed as they are
    [{"role": "user", "content": "…"}, …]   {"messages": […]}     answered, in the chat format that it was trained on
    [[message, …], [message, …]]                                  conversations
    a DataFrame with a column `prompt`, `messages` or, alone, any name: a row each
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models import set_model

try:
    from cluster.errors import UserError, did_you_mean
    from cluster.serve.generator import Generator
    from model.generate.decoding import TEXT, TYPES, Decoding
except ImportError as error:
    raise ImportError(
        f"This model runs with the package `tokenmill`, which can't be imported here ({error}). "
        "Install it from its repository: pip install git+<its URL>, or pip install . in a checkout."
    ) from error


def prompts_of(data: Any) -> list[Any]:
    """The prompts in whatever `predict` was given: a list of strings and of lists of messages.

    Raises:
        ValueError: nothing of the forms above.
    """
    if isinstance(data, str):
        return [data]
    if isinstance(data, Mapping):
        if _is_message(data):
            return [[dict(data)]]
        for name in ("messages", "prompt", "prompts"):
            if name in data:
                return prompts_of(_plain(data[name]))
        raise UserError(f"A dict with the keys {', '.join(map(repr, data))}: it needs 'messages' or 'prompt'.")
    if hasattr(data, "columns"):
        return _rows(data)
    data = _plain(data)
    if not isinstance(data, list):
        raise UserError(f"A {type(data).__name__} is no prompt. Give a string, a list of them, or chat messages.")
    if data and all(isinstance(item, Mapping) and _is_message(item) for item in data):
        return [[dict(item) for item in data]]
    prompts: list[Any] = []
    for item in data:
        prompts += prompts_of(item)
    return prompts


def _is_message(item: Mapping) -> bool:
    return "role" in item and "content" in item


def _rows(frame: Any) -> list[Any]:
    columns = [str(c) for c in frame.columns]
    if {"role", "content"} <= set(columns):  # a list of messages that was made a table on the way
        return [[{"role": r, "content": c} for r, c in zip(frame["role"], frame["content"], strict=True)]]
    names = [c for c in ("messages", "prompt") if c in columns] or (columns if len(columns) == 1 else [])
    if not names:
        raise UserError(f"A table with the columns {', '.join(columns)}: it needs 'prompt' or 'messages'.")
    prompts: list[Any] = []
    for _, row in frame.iterrows():
        values = [_plain(row.iloc[columns.index(name)]) for name in names]
        given = [v for v in values if v is not None and v == v]
        if not given:
            raise UserError(f"A row has nothing in {' or '.join(names)}.")
        value = given[0]
        if isinstance(value, str) and names[0] == "messages" and value.lstrip().startswith("["):
            value = json.loads(value)
        prompts += prompts_of(value)
    return prompts


def _plain(value: Any) -> Any:
    """Lists out of arrays, tuples and series."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def decoding_of(params: Any) -> Decoding:
    """How to decode, by `params`: names of the signature.

    Raises:
        MlflowException: a name that isn't among them; a server answers it with 400.
    """
    for name in params or {}:
        if name not in TYPES:
            raise MlflowException.invalid_parameter_value(
                f"No parameter {name!r}.{did_you_mean(str(name), TYPES)} There are: {', '.join(TYPES)}."
            )
    return TEXT.read(params or {})


def refuse_unknown_params() -> None:
    """Have MLflow hand a misspelt parameter to `decoding_of`.

    MLflow leaves out what the signature doesn't name, with a warning, before the model is asked, and has no setting
    for it. Other models' parameters are left alone: theirs is another signature.
    """
    enforce = mlflow.pyfunc._enforce_params_schema

    def enforced(params: Any, schema: Any) -> Any:
        if isinstance(params, dict) and schema is not None and {p.name for p in schema.params} == set(TYPES):
            decoding_of(dict.fromkeys(params))
        return enforce(params, schema)

    if enforce.__name__ != enforced.__name__:  # this file is run at each load
        mlflow.pyfunc._enforce_params_schema = enforced  # type: ignore[assignment]


class TokenmillModel(mlflow.pyfunc.PythonModel):
    """A registered language model."""

    # MLflow wants a type hint of the input and warns without one; its hints can't say "a string or messages".
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        self.generator = Generator(context.artifacts["model"])

    def predict(self, context, model_input, params: dict[str, Any] | None = None):
        """A list of strings, one for each prompt."""
        prompts = prompts_of(model_input)
        return self.generator.generate(prompts, decoding_of(params)) if prompts else []

    def predict_stream(self, context, model_input, params: dict[str, Any] | None = None):
        """Pieces of text. MLflow makes a table of the input first: give {"prompt": …} or {"messages": […]}."""
        for prompt in prompts_of(model_input):
            yield from self.generator.stream(prompt, decoding_of(params))


refuse_unknown_params()
set_model(TokenmillModel())
