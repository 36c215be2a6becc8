"""How the tokenizer is trained: a deterministic sample of the documents, then sentencepiece, single-threaded.

A document is in the sample if a hash of its text, salted with the seed, falls below its source's share: the
same documents give the same sample and the same model, byte for byte, on any number of workers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cluster.data.parallel import documents, ordered, start_ray, stop_check, text_hash, unwrap
from cluster.data.tokenizer.tokenizer import BOS, EOS, PAD, RESERVED, SPECIAL, UNK, Tokenizer, TokenizerConfig
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.data.shards import RowGroup
    from cluster.stage import Workspace
    from cluster.store.artifact import Artifact

DOCUMENT_CHARACTERS = 1 << 16  # of one document, so that a giant one doesn't fill the sample
SENTENCE_CHARACTERS = 2000
MEASURED_BYTES = 400_000  # of each source, for bytes per token


class Sample(NamedTuple):
    references: list[Any]  # Ray references to lists of (source, text)
    bytes: dict[str, int]


def sample_documents(ws: Workspace, config: TokenizerConfig) -> Sample:
    """The sample, left in Ray's object store.

    Raises:
        ValueError: there is no text, or a weight names no source.
    """
    from cluster.data.shards import row_groups

    artifact = ws.inputs["documents"]
    units = row_groups(artifact.path())
    start_ray(ws)
    check = stop_check(ws)
    sizes: dict[str, int] = {}
    for measured in ordered(measure, units, artifact, check=check):
        for source, size in measured.items():
            sizes[source] = sizes.get(source, 0) + size
    unknown = sorted(set(config.weights) - set(sizes))
    if unknown:
        raise UserError(f"tokenizer.weights names {unknown}; the documents have {sorted(sizes)}.")
    if not sum(sizes.values()):
        raise UserError("The documents hold no text, so there is nothing to train a tokenizer on.")
    wanted = shares(sizes, {s: config.weights.get(s, 1.0) for s in sizes}, config.sample_mb * 1e6)
    rates = {source: wanted[source] / sizes[source] if sizes[source] else 0.0 for source in sizes}
    references, total = [], dict.fromkeys(sorted(sizes), 0)
    for reference, counted in ordered(keep, units, artifact, rates, config.seed, check=check):
        references.append(reference)
        for source, size in counted.items():
            total[source] += size
    return Sample(references, total)


def shares(sizes: Mapping[str, int], weights: Mapping[str, float], budget: float) -> dict[str, float]:
    """Water-filling: the budget by weight, no source above its size, what is left over to the others."""
    result = dict.fromkeys(sizes, 0.0)
    open_ = {s for s in sizes if weights[s] > 0 and sizes[s] > 0}
    while open_:
        total = sum(weights[s] for s in open_)
        full = {s for s in open_ if sizes[s] <= budget * weights[s] / total}
        for source in full or open_:
            result[source] = float(sizes[source]) if full else budget * weights[source] / total
        if not full:
            break
        budget -= sum(sizes[s] for s in full)
        open_ -= full
    return result


def measure(unit: RowGroup, artifact: Artifact) -> dict[str, int]:
    """Bytes of each source in a row group, each document counted up to the sample's cut."""
    sizes: dict[str, int] = {}
    for source, text in documents(artifact, unit):
        sizes[source] = sizes.get(source, 0) + len(text[:DOCUMENT_CHARACTERS].encode())
    return sizes


def keep(unit: RowGroup, artifact: Artifact, rates: dict[str, float], seed: int) -> tuple[Any, dict[str, int]]:
    """The row group's part of the sample: a reference to it, and its bytes by source."""
    import ray

    kept, sizes = [], {}
    for source, text in documents(artifact, unit):
        if text_hash(text, f"tokenizer-{seed}") < rates[source] * 2.0**64:
            text = text[:DOCUMENT_CHARACTERS]
            kept.append((source, text))
            sizes[source] = sizes.get(source, 0) + len(text.encode())
    return ray.put(kept), sizes


def train_remote(ws: Workspace, references: list[Any], config: TokenizerConfig) -> tuple[Tokenizer, dict[str, float]]:
    """`train` in a Ray task. Raises what it raises, and Stopped."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=2)(_train_task).remote(references, config)
    check = stop_check(ws)
    try:
        while not ray.wait([task], timeout=0.5)[0]:
            check()
    except BaseException:
        ray.cancel(task, force=True)
        raise
    return unwrap(task)


def _train_task(references: list[Any], config: TokenizerConfig) -> tuple[Tokenizer, dict[str, float]]:
    import ray

    sample = [document for part in ray.get(references) for document in part]
    tokenizer = train((text for _, text in sample), config)
    return tokenizer, bytes_per_token(tokenizer, sample)


def train(texts: Any, config: TokenizerConfig) -> Tokenizer:
    """Train on texts, in their order.

    Raises:
        ValueError: the text can't fill the vocabulary, with the largest size that it can.
    """
    import sentencepiece

    texts = list(texts)
    unigram = config.algorithm == "unigram"
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
            sentence_iterator=iter(training_sentences(texts, config)),
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


def info_of(model: bytes, algorithm: str) -> dict[str, Any]:
    """tokenizer.json of a sentencepiece model with the options above."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return {
        "format": 1,
        "algorithm": algorithm,
        "vocab_size": processor.vocab_size(),
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
        "special": {name: processor.piece_to_id(name) for name in SPECIAL},
    }


def _explained(message: str, config: TokenizerConfig, characters: int) -> Exception:
    found = re.search(r"Vocabulary size too high.*value <= (\d+)", message)
    if found:
        return ValueError(
            f"tokenizer.vocab_size = {config.vocab_size} is more than the sample of {characters:,} characters "
            f"can fill: the largest size possible here is {found[1]}. Take that or less, or give it more text."
        )
    return RuntimeError(f"sentencepiece failed: {message}")


def sentences(text: str) -> Iterator[str]:
    """The text in pieces of at most SENTENCE_CHARACTERS, cut after a newline or before a space where there is
    one."""
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
    """Characters beyond `character_coverage`, or beyond half of the vocabulary, the least frequent first to
    go.

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
    return {s: round(text_bytes[s] / max(tokens[s], 1), 4) for s in sorted(text_bytes)}
