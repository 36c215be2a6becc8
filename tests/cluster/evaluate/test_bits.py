"""Bits per byte of one source, against sums over its documents that are written out here."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import make_model

from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.evaluate import bits
from cluster.evaluate.config import EvaluateConfig
from cluster.evaluate.evaluate import bpb_figure
from cluster.evaluate.summary import EvaluationSummary
from model.checkpoint import load_model

TEXTS = ["The quick brown fox.", "é ⅣⅣ mind", "def add(first, second):", "Reading is to the mind what exercise is."]


def folder_of(path: Path) -> Any:
    return SimpleNamespace(path=lambda: path)


def write_tokens(folder: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """A tokens artifact of TEXTS, in both splits."""
    ids = [tokenizer.encode(text, bos=True, eos=True) for text in TEXTS]
    np.concatenate(ids).astype("<u2").tofile(folder / "all.bin")
    np.save(folder / "docs.npy", np.cumsum([0, *map(len, ids)]))
    np.save(folder / "bytes.npy", np.array([len(text.encode()) for text in TEXTS]))
    shard = {"file": "all.bin", "documents_file": "docs.npy", "bytes_file": "bytes.npy"}
    split = {"shards": [shard], "tokens": sum(map(len, ids)), "documents": len(ids)}
    sources = {"prose": {"train": split, "validation": split}}
    index = {"dtype": "<u2", "vocab_size": tokenizer.vocab_size, "sources": sources}
    named = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("pad", "bos", "eos")}
    (folder / "index.json").write_text(json.dumps(index | named), encoding="utf-8")
    return ids


def documents_of(text: bytes) -> list[int]:
    """Which of TEXTS are scored."""
    return [i for i, one in enumerate(TEXTS) if one.encode() in text]


@pytest.mark.parametrize("limit", [1.0, 30 / 2**20])
def test_a_source_s_figures_are_sums_over_its_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    folder = make_model(tmp_path / "model", max_seq_len=96)
    model, tokenizer = load_model(folder), Tokenizer(folder)
    ids = write_tokens(tokens, tokenizer)
    packed: list[tuple[bytes, int]] = []
    compress = gzip.compress
    monkeypatch.setattr(
        bits.gzip, "compress", lambda text, level: packed.append((text, level)) or compress(text, level)
    )
    score = bits.score_source(folder_of(folder), folder_of(tokens), "prose", EvaluateConfig(validation_mb=limit))
    [(text, level)] = packed
    chosen = documents_of(text)
    assert level == 9 and (len(chosen) == 4 if limit == 1 else 0 < len(chosen) < 4)
    assert score["bytes"] == len(text) == sum(len(TEXTS[i].encode()) for i in chosen)
    assert score["tokens"] == sum(len(ids[i]) - 1 for i in chosen)
    counts = np.ones(tokenizer.vocab_size)  # add-one
    for document in ids:
        np.add.at(counts, document[1:], 1)
    unigram = np.log2(counts / counts.sum())
    expected = -sum(unigram[token] for i in chosen for token in ids[i][1:]) / len(text)
    assert score["unigram_bpb"] == pytest.approx(expected)
    assert score["gzip_bpb"] == 8 * len(compress(text, 9)) / len(text)
    nats = 0.0
    for i in chosen:
        with torch.no_grad():
            logp = model.logits(model(torch.tensor([ids[i]]))[0])[0].log_softmax(-1)
        nats -= sum(float(logp[at - 1, ids[i][at]]) for at in range(1, len(ids[i])))
    assert score["bpb"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    assert bits.BOUND_ERROR not in score


@pytest.mark.parametrize("causal", [True, False])
def test_a_source_without_held_out_text_has_no_figures(tmp_path: Path, causal: bool) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    folder = make_model(tmp_path / "model", max_seq_len=96, causal=causal)
    write_tokens(tokens, Tokenizer(folder))
    index = json.loads((tokens / "index.json").read_text(encoding="utf-8"))
    index["sources"]["prose"]["validation"] = {"shards": [], "tokens": 0, "documents": 0}
    (tokens / "index.json").write_text(json.dumps(index), encoding="utf-8")
    assert bits.score_source(folder_of(folder), folder_of(tokens), "prose", EvaluateConfig()) is None
    assert bits.summarise([]) == {}
    why = bits.not_measured(["prose"], all_=True)
    summary = EvaluationSummary.read(EvaluationSummary({}, why).values())
    assert summary.words().startswith("bpb/prose was not measured: there is no held-out text of the source 'prose'")
    assert list(summary.closing()) == [
        "bpb/prose was not measured: there is no held-out text of the source 'prose'",
        "bpb was not measured: there is no held-out text of any source",
    ]
    assert EvaluationSummary.read(EvaluationSummary({"bpb": 1.0}).values()) == EvaluationSummary({"bpb": 1.0})


def test_a_bound_pays_for_each_document_s_length_and_has_its_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    folder = make_model(tmp_path / "model", max_seq_len=96, causal=False)
    ids = write_tokens(tokens, Tokenizer(folder))

    def bound(model: Any, batch: Any, numbers: Any, samples: int, seed: int) -> Any:
        assert (samples, seed) == (4, 7)
        return torch.zeros(len(numbers)), torch.full((len(numbers),), 9.0 / len(numbers))

    monkeypatch.setattr("model.objectives.masked_diffusion.likelihood_bound", bound)
    config = EvaluateConfig(bound_samples=4, seed=7)
    score = bits.score_source(folder_of(folder), folder_of(tokens), "prose", config)
    assert score["bpb"] * score["bytes"] == pytest.approx(sum(bits.delta_bits(len(document)) for document in ids))
    assert score[bits.BOUND_ERROR] * score["bytes"] == pytest.approx(3 / math.log(2))


@pytest.mark.parametrize(("more", "own"), [({}, "model"), ({"bpb_bound_error": 0.1}, "model, at most")])
def test_the_figure_says_of_a_bound_that_it_is_one(more: dict[str, float], own: str) -> None:
    drawn: list[dict] = []
    events = SimpleNamespace(figure=lambda name, spec: drawn.append({"name": name, **spec}))
    score = {"source": "a", "bpb": 1.0, "gzip_bpb": 2.0, "unigram_bpb": 3.0, **more}
    bpb_figure(SimpleNamespace(events=events, step="evaluate"), [score])  # type: ignore[arg-type]
    assert [(s["name"], s["x"], s["y"]) for s in drawn[0]["series"]] == [
        (own, ["a"], [1.0]), ("gzip -9", ["a"], [2.0]), ("unigram", ["a"], [3.0])
    ]  # fmt: skip
