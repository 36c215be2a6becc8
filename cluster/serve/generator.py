"""From the name of a model to text: find its files, load it once, complete and chat.

MODEL                       models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME (its champion), or a folder
  └─ model_folder(MODEL)    a folder with model.safetensors, config.json, tokenizer.model, tokenizer.json
       └─ Generator(folder)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.errors import Missing, UserError
from cluster.serve.stops import cut, settled
from cluster.tracking.place import Place
from model.generate.decoding import TEXT, Decoding

FILES = ("model.safetensors", "config.json", "tokenizer.model", "tokenizer.json")
INSIDE = "artifacts/model"  # where an MLflow model of ours keeps them
UNFINISHED = "\ufffd"
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Prompt = str | Sequence[Message]


def model_folder(model: str | Path, place: Place | None = None) -> Path:
    """The local folder that holds a model's files; from a remote registry they are downloaded once.

    Args:
        model: see the top of this file; a folder may also be an MLflow model's.
        place: which MLflow to ask; default: MLFLOW_TRACKING_URI, else mlflow.db in the working folder.

    Raises:
        ValueError: `model` has neither form.
        LookupError: nothing is there under that name; the message has the nearest.
    """
    text = str(model)
    if text.startswith("models:"):
        return _registered(text, place)
    folder = Path(text).expanduser()
    for candidate in (folder, folder / INSIDE):
        if all((candidate / f).is_file() for f in FILES):
            return candidate.absolute()
    if folder.is_dir():
        missing = ", ".join(f for f in FILES if not (folder / f).is_file())
        raise Missing(f"{folder} is no model's folder: it has no {missing}.")
    if "/" not in text and "\\" not in text:
        raise Missing(_perhaps_registered(text, place))
    raise Missing(f"There is no folder {folder}. A registered model is written models:/NAME@ALIAS.")


def _registered(uri: str, place: Place | None) -> Path:
    from cluster.registry.versions import Registry
    from cluster.tracking.place import import_quietly

    registry = Registry(place)
    version = registry.get(uri)
    here = registry.local_files(version)
    if here is not None:
        return _checked(here / INSIDE, version.uri)
    key = f"{registry.place.uri}|{version.uri}|{version.created}|{version.source}"
    cache = Path(os.environ.get("TOKENMILL_CACHE") or Path.home() / ".cache" / "tokenmill") / "models"
    target = cache / hashlib.sha256(key.encode()).hexdigest()[:20]
    if not target.is_dir():
        import_quietly()
        from mlflow.artifacts import download_artifacts

        client = registry.client
        source = client.get_model_version_download_uri(version.name, str(version.version))
        if source.startswith("models:/m-"):
            source = client.get_logged_model(source.removeprefix("models:/")).artifact_location
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            uri = f"{source.rstrip('/')}/{INSIDE}"
            got = Path(download_artifacts(artifact_uri=uri, dst_path=fresh, tracking_uri=registry.place.uri))
            _checked(got, version.uri)
            try:
                got.rename(target)
            except OSError:  # another process was quicker
                shutil.rmtree(got, ignore_errors=True)
    return _checked(target, version.uri)


def _checked(folder: Path, name: str) -> Path:
    missing = [f for f in FILES if not (folder / f).is_file()]
    if missing:
        raise Missing(f"{name} is no model of tokenmill's: its files have no {', '.join(missing)} in {INSIDE}/.")
    return folder


def _perhaps_registered(name: str, place: Place | None) -> str:
    from cluster.registry.versions import Registry, like

    try:
        known = Registry(place).names()
    except (LookupError, ConnectionError):
        known = []
    if name in known:
        return f"There is no folder {name!r}; the registered model is written models:/{name}@champion."
    return f"There is no folder {name!r}, and no registered model of that name. {like(name, known)}"


class Generator:
    """A model that is loaded once and asked often. Not for two threads at once.

    Args:
        folder: as `model_folder` returns it.
        device: a torch device; default: a GPU if there is one.
    """

    def __init__(self, folder: Path | str, device: str | None = None):
        import torch

        from cluster.data.tokenizer.tokenizer import Tokenizer
        from model.checkpoint import load_model

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = Tokenizer(folder)
        self.model = load_model(folder, self.device)

    @classmethod
    def load(cls, model: str | Path, place: Place | None = None, device: str | None = None) -> Generator:
        """By name; see `model_folder`."""
        return cls(model_folder(model, place), device)

    def complete(self, text: str, decoding: Decoding = TEXT, **changes: Any) -> str:
        """What follows `text`; see `generate`."""
        return self.generate([text], decoding, **changes)[0]

    def chat(self, messages: Sequence[Message], decoding: Decoding = TEXT, **changes: Any) -> str:
        """The assistant's answer to a conversation; see `generate`."""
        return self.generate([messages], decoding, **changes)[0]

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding = TEXT, **changes: Any) -> list[str]:
        """Text for each prompt, in one batch: a string is completed as it is, messages are answered.

        Args:
            decoding: how; prompt i has its seed + i.
            changes: fields of `decoding` that are to be other, such as max_new_tokens=20.

        Raises:
            UserError: a number out of its range, or messages that the chat template doesn't allow.
        """
        from model.generate.by_kind import generate

        decoding = self._possible(replace(decoding, **changes))
        ids = [self.encode(p, decoding.max_new_tokens) for p in prompts]
        done = generate(self.model, ids, decoding.ended_by(self.tokenizer.stop_ids))
        return [self._text(c.tokens, decoding)[0] for c in done]

    def stream(self, prompt: Prompt, decoding: Decoding = TEXT, **changes: Any) -> Iterator[str]:
        """The text of one answer in pieces, as it is drawn; joined, it is what `generate` returns."""
        from model.generate.by_kind import stream

        decoding = self._possible(replace(decoding, **changes))
        tokens: list[int] = []
        shown = text = ""
        ids = self.encode(prompt, decoding.max_new_tokens)
        for token in stream(self.model, ids, decoding.ended_by(self.tokenizer.stop_ids)):
            tokens.append(token.id)
            text, ended = self._text(tokens, decoding)
            if ended:
                break
            # The last bytes may become a character with the next token, and the last characters a stop.
            whole = settled(text.rstrip(UNFINISHED), decoding.stop_texts)
            if len(whole) > len(shown):
                yield whole[len(shown) :]
                shown = whole
        if len(text) > len(shown):
            yield text[len(shown) :]

    def _text(self, tokens: Sequence[int], decoding: Decoding) -> tuple[str, bool]:
        """(what the tokens say before one of the `stops`, whether there is one)."""
        at_id = bool(tokens) and tokens[-1] in decoding.stop_ids
        text, at_text = cut(self.tokenizer.decode(tokens[:-1] if at_id else tokens), decoding.stop_texts)
        return text, at_id or at_text

    def encode(self, prompt: Prompt, max_new_tokens: int) -> list[int]:
        """A prompt's ids. Of one too long for the model's context the last part is kept, with room to answer."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, bos=True)
        else:
            from cluster.data.tokenizer.chat import render_prompt

            ids = render_prompt(self.tokenizer, prompt)
        limit = self.model.config.max_seq_len
        room = max(1, limit - min(max_new_tokens, limit // 2))
        return ids if len(ids) <= room else [ids[0], *ids[len(ids) - room + 1 :]]

    def _possible(self, decoding: Decoding) -> Decoding:
        if decoding.unmasks and self.model.config.causal:
            names = " and ".join(decoding.unmasks)
            raise UserError(f"{names}: for diffusion models; this one writes token after token.")
        return decoding
