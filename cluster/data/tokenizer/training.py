"""Stage `tokenizer`: sentencepiece trained on a sample of the documents.

    documents ── sample.py ──▶ texts ── cut into sentences, rare characters out ──▶ sentencepiece ──▶ tokenizer.model
                                                                                                      tokenizer.json

The training is single-threaded: the same documents give the same model, byte for byte, on any number of workers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.data.streaming import ordered, stop_check, unwrap
from cluster.data.summaries import TokenizerSummary
from cluster.data.tokenizer.sample import sample_documents
from cluster.data.tokenizer.tokenizer import BOS, EOS, PAD, RESERVED, SPECIAL, UNK, Tokenizer, info_of
from cluster.errors import UserError
from cluster.stage import Stage, Workspace

SENTENCE_CHARACTERS = 2000
MEASURED_BYTES = 400_000  # of each source, for bytes per token
# What sentencepiece says of text that gives no sentence, no character or no piece
_NOTHING_LEARNED = ("!sentences_.empty()", "!required_chars_.empty()", "no pieces are loaded")


class TokenizerConfig(BaseModel):
    """`[tokenizer]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Literal["bpe", "unigram"] = "bpe"
    vocab_size: int = Field(4096, ge=RESERVED + 8, le=1 << 20, description="special tokens and bytes included")
    sample_mb: float = Field(20.0, gt=0, le=4096, description="text it is trained on, at most")
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="share of each source in the sample; 1 where not named"
    )
    character_coverage: float = Field(
        0.9995,
        gt=0.5,
        le=1,
        description="share of the sample's characters that get a piece; the rest are bytes",
    )
    split_digits: bool = Field(True, description="each digit a token of its own")
    max_piece_length: int = Field(16, ge=1, le=64, description="characters in a piece, at most")
    seed: int = 0


def run_tokenizer(ws: Workspace) -> TokenizerSummary:
    """Train on a sample of the documents; writes tokenizer.model and tokenizer.json."""
    config: TokenizerConfig = ws.config
    check = stop_check(ws)
    sources, sample = sample_documents(ws.inputs["documents"], config.sample_mb, config.weights, config.seed, check)
    # One task; sentencepiece doesn't listen to Python, so where the run stops its worker is ended.
    [(tokenizer, measured, sizes)] = ordered(_train_task, [config], sample, check=check, kill=True)
    tokenizer.save(ws.out)
    ws.events.metrics(0, {f"bytes_per_token/{name}": value for name, value in measured.items()})
    return TokenizerSummary(
        vocab_size=tokenizer.vocab_size,
        algorithm=config.algorithm,
        sample_bytes=sum(sizes.values()),
        sample=dict.fromkeys(sources, 0) | sizes,
        bytes_per_token=measured,
    )


def _train_task(config: TokenizerConfig, parts: list[Any]) -> tuple[Tokenizer, dict[str, float], dict[str, int]]:
    """The tokenizer, its bytes per token, and the sample's bytes by source."""
    sample: list[tuple[str, str]] = [document for part in parts for document in unwrap(part)]
    sizes: dict[str, int] = {}
    for source, text in sample:
        sizes[source] = sizes.get(source, 0) + len(text.encode())
    try:
        tokenizer = train([text for _, text in sample], config)
    except UserError as error:
        of = ", ".join(f"{size:,} bytes of {source}" for source, size in sorted(sizes.items()))
        raise UserError(f"{error} The sample is {of}; tokenizer.sample_mb is {config.sample_mb:g}.") from None
    return tokenizer, bytes_per_token(tokenizer, sample), sizes


def train(texts: list[str], config: TokenizerConfig) -> Tokenizer:
    """Train on texts, in their order.

    Raises:
        UserError: the text can't fill the vocabulary, with the largest size that it can.
    """
    import sentencepiece

    unigram = config.algorithm == "unigram"
    given = training_sentences(texts, config)
    if not any(given):
        raise UserError("The sample has no text but white space and NULs to train a tokenizer on.")
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
            sentence_iterator=iter(given),
            model_writer=out,
            model_type=config.algorithm,
            vocab_size=config.vocab_size,
            character_coverage=1.0,  # training_sentences has chosen the alphabet
            split_digits=config.split_digits,
            max_sentencepiece_length=config.max_piece_length,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=PAD,
            unk_piece=UNK,
            bos_piece=BOS,
            eos_piece=EOS,
            unk_surface="\ufffd",
            control_symbols=list(SPECIAL),
            # Unigram's EM adds up floats by thread, so the number of threads is part of the result.
            num_threads=1,
            # The default of a million candidates is for vocabularies of 32k and costs Unigram minutes.
            seed_sentencepiece_size=min(1_000_000, 10 * config.vocab_size) if unigram else 1_000_000,
            max_sentence_length=1 << 20,
            input_sentence_size=0,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(str(error), config, sum(len(t) for t in texts)) from None
    model = rounded(out.getvalue()) if unigram else out.getvalue()
    return Tokenizer.from_bytes(model, info_of(model, config.algorithm))


def rounded(model: bytes) -> bytes:
    """A Unigram model whose scores are multiples of 1/1024, so that their sums over a line are exact in float32.

    Two ways to cut a text into the same pieces, such as a run of spaces, are equally good. With exact sums they are a
    tie, and the first is taken, here as in any other library that reads these pieces; else rounding would choose.
    """
    from sentencepiece import sentencepiece_model_pb2 as sp

    proto = sp.ModelProto.FromString(model)  # type: ignore[attr-defined]
    for piece in proto.pieces:
        piece.score = round(piece.score * 1024) / 1024
    return proto.SerializeToString(deterministic=True)


def _explained(message: str, config: TokenizerConfig, characters: int) -> Exception:
    found = re.search(r"Vocabulary size too high.*value <= (\d+)", message)
    if found:
        return UserError(
            f"tokenizer.vocab_size = {config.vocab_size} is more than the sample of {characters:,} characters "
            f"can fill: the largest size possible here is {found[1]}. Take that or less, or give it more text."
        )
    if any(nothing in message for nothing in _NOTHING_LEARNED):
        return UserError(
            f"The sample of {characters:,} characters has nothing to make pieces of: it is line ends, names of special "
            "tokens, or one character again and again. Give it other text."
        )
    return RuntimeError(f"sentencepiece failed: {message}")


def sentences(text: str) -> Iterator[str]:
    """The text in pieces of at most SENTENCE_CHARACTERS, cut after a newline or before a space where there is one."""
    text = text.replace("\0", "")
    start = 0
    while start < len(text):
        stop = start + SENTENCE_CHARACTERS
        if stop < len(text):
            cut = text.rfind("\n", start, stop) + 1 or text.rfind(" ", start + 1, stop)
            stop = cut if cut > start else stop
        yield text[start:stop]
        start = stop


def training_sentences(texts: list[str], config: TokenizerConfig) -> list[str]:
    """The texts' sentences, cut at every character that is to have no piece of its own."""
    rare = rare_characters(texts, config)
    if not rare:
        return [s for text in texts for s in sentences(text)]
    cut = re.compile(f"[{re.escape(rare)}]+")
    return [part for text in texts for s in sentences(text) for part in cut.split(s) if part]


def rare_characters(texts: list[str], config: TokenizerConfig) -> str:
    """Characters beyond `character_coverage`, or beyond half of the vocabulary, the least frequent first to go.

    sentencepiece would rather refuse a vocabulary that can't hold the alphabet; with bytes to fall back on
    there is no need to.
    """
    counts = np.zeros(0x110000, dtype=np.int64)
    for start in range(0, len(texts), 64):
        block = "".join(texts[start : start + 64]).encode("utf-32-le", "replace")
        counts += np.bincount(np.frombuffer(block, dtype="<u4"), minlength=len(counts))
    ranked = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    covered = np.cumsum(counts[ranked])
    if not len(ranked):
        return ""
    kept = int(np.searchsorted(covered, config.character_coverage * covered[-1])) + 1
    free = config.vocab_size - RESERVED
    return "".join(map(chr, sorted(ranked[min(kept, free, max(free // 2, 256)) :].tolist())))


def bytes_per_token(tokenizer: Tokenizer, sample: list[tuple[str, str]]) -> dict[str, float]:
    """UTF-8 bytes per token of each source, on the start of its part of the sample."""
    text_bytes: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for source, text in sample:
        if text_bytes.get(source, 0) < MEASURED_BYTES:
            text_bytes[source] = text_bytes.get(source, 0) + len(text.encode())
            tokens[source] = tokens.get(source, 0) + len(tokenizer.encode(text))
    return {s: round(text_bytes[s] / tokens[s], 4) for s in sorted(text_bytes) if tokens[s]}


STAGE = Stage("tokenizer", "tokenizer", 3, TokenizerConfig, run_tokenizer, TokenizerSummary)
