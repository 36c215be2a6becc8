"""Documents as an artifact, without a corpus: what the tests of the tokenizer and pack stages start from."""

from __future__ import annotations

import random

from pydantic import BaseModel

from cluster.data.pack import STAGE as PACK
from cluster.data.pack import PackConfig
from cluster.data.shards import ShardWriter, schema
from cluster.data.tokenizer.training import STAGE as TOKENIZER
from cluster.data.tokenizer.training import TokenizerConfig
from cluster.stage import Stage, Step, Workspace, run_step
from cluster.store.artifact import Artifact, Artifacts
from tests.given_summary import Given

SYLLABLES = ["ka", "lo", "mi", "ten", "sur", "pa", "re", "vol", "ni", "dra", "shu", "el", "or", "ban", "qui", "fo"]
WORDS = ["the", "fox", "and", *(a + b + c for a in SYLLABLES for b in SYLLABLES for c in ("", "n", "s"))]


class GivenConfig(BaseModel):
    documents: tuple[tuple[str, str], ...]  # (source, text)
    group_bytes: int = 4000  # small, so that few documents make many units of work


def write_documents(ws: Workspace) -> Given:
    import pyarrow as pa

    rows = [{"id": f"{s}/{i}", "source": s, "text": t} for i, (s, t) in enumerate(ws.config.documents)]
    writer = ShardWriter(ws.out, shard_bytes=30_000, group_bytes=ws.config.group_bytes)
    writer.write(pa.Table.from_pylist(rows, schema=schema()))
    writer.close()
    return Given({"documents": len(rows)})


GIVEN = Stage("given", "documents", 1, GivenConfig, write_documents, Given, uses_ray=False)


def given(documents: list[tuple[str, str]], group_bytes: int = 4000) -> Step:
    return Step("given", GIVEN, GivenConfig(documents=tuple(documents), group_bytes=group_bytes), {})


def tokenizer_step(documents: Step, **config) -> Step:
    config = {"vocab_size": 400, **config}
    return Step("tokenizer", TOKENIZER, TokenizerConfig(**config), {"documents": documents})


def pack_step(documents: Step, tokenizer: Step, **config) -> Step:
    config = {"validation_min_kb": 0, **config}
    return Step("pack", PACK, PackConfig(**config), {"documents": documents, "tokenizer": tokenizer})


def make(step: Step, folder) -> Artifact:
    return run_step(step, Artifacts(str(folder))).artifact


def sentences(seed: int, n: int) -> str:
    rng = random.Random(seed)
    lines = (" ".join(rng.choice(WORDS) for _ in range(rng.randrange(4, 12))) + "." for _ in range(n))
    return "\n".join(lines)


def some_documents() -> list[tuple[str, str]]:
    """Two sources of unlike size, texts of one character to some thousands, and copies across sources."""
    prose = [("prose", f"Story {i}: {sentences(i, 1 + i % 9)}") for i in range(120)]
    code = [
        ("code", f"def f{i}(x):\n    return x + {i}\n\n\tif x:\n        pass  # {i * i}\n" * (1 + i % 5))
        for i in range(60)
    ]
    odd = [("prose", "é漢字🙂"), ("prose", "x"), ("code", "<|user|> </s>"), ("code", sentences(7, 80))]
    copies = [("code", text) for _, text in prose[:30]]
    return [*prose, *code, *odd, *copies]
