"""From the name of a model to text: find its files, load it once, complete and chat.

MODEL                       models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME (its champion), or a folder
  └─ model_folder(MODEL)    a folder with model.safetensors, config.json, tokenizer.model, tokenizer.json
       └─ Generator(folder)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.registry.find import model_folder
from cluster.tracking.place import Place
from model.generate.unmasking import ONE_BY_ONE, Unmasking

UNFINISHED = "\ufffd"
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Prompt = str | Sequence[Message]


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

    def complete(self, text: str, **options: Any) -> str:
        """What follows `text`. Options: see `generate`."""
        return self.generate([text], **options)[0]

    def chat(self, messages: Sequence[Message], **options: Any) -> str:
        """The assistant's answer to a conversation. Options: see `generate`."""
        return self.generate([messages], **options)[0]

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 0,
        seed: int | Sequence[int] = 0,
        unmasking: Unmasking | None = None,
    ) -> list[str]:
        """Text for each prompt, in one batch: a string is completed as it is, messages are answered.

        Args:
            temperature: 0 takes the likeliest token each time.
            seed: one for each prompt, or one number s that gives prompt i the seed s + i.
            unmasking: how a diffusion model fills in the text; None: one token a pass.

        Raises:
            ValueError: a number out of its range, or messages that the chat template doesn't allow.
        """
        from model.generate.by_kind import generate
        from model.generate.sampling import Sampling

        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens = {max_new_tokens} must be at least 1.")
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
        ids = [self.encode(p, max_new_tokens) for p in prompts]
        how = self._unmasking(unmasking)
        done = generate(self.model, ids, max_new_tokens, sampling, self.tokenizer.stop_ids, seed, how)
        return [self.tokenizer.decode(c.tokens) for c in done]

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 0,
        seed: int = 0,
        unmasking: Unmasking | None = None,
    ) -> Iterator[str]:
        """The text of one answer in pieces, as it is drawn; joined, it is what `generate` returns."""
        from model.generate.by_kind import stream
        from model.generate.sampling import Sampling

        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
        tokens: list[int] = []
        shown = ""
        ids = self.encode(prompt, max_new_tokens)
        how = self._unmasking(unmasking)
        for token in stream(self.model, ids, max_new_tokens, sampling, self.tokenizer.stop_ids, seed, how):
            tokens.append(token.id)
            text = self.tokenizer.decode(tokens)
            whole = text.rstrip(UNFINISHED)  # the last bytes may become a character with the next token
            if len(whole) > len(shown):
                yield whole[len(shown) :]
                shown = whole
        rest = self.tokenizer.decode(tokens)[len(shown) :]
        if rest:
            yield rest

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

    def _unmasking(self, given: Unmasking | None) -> Unmasking:
        if given is not None and self.model.config.causal:
            raise UserError("steps and block_length are for diffusion models; this one writes token after token.")
        return given or ONE_BY_ONE


def unmasking_of(steps: int = 0, block_length: int = 0) -> Unmasking | None:
    """What a person's two numbers say; None for two zeros, which every model takes."""
    return Unmasking(steps, block_length) if steps or block_length else None
