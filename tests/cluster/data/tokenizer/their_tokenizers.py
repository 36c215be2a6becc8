"""Small tokenizers of every form that the hub has, as folders that `AutoTokenizer.from_pretrained` reads."""

import io
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SOURCES = [
    p.read_text(encoding="utf-8") for p in sorted(Path(__file__).parents[4].glob("cluster/**/*.py")) if p.stat().st_size
][:20]
LINES = [line for text in SOURCES for line in text.splitlines()]
SPECIAL, PLAIN, SPACED, WORD = "<|im_start|>", "<tool>", "<n>", "Zebra"


def token(content: str, special: bool = False, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    return {"content": content, "special": special, "normalized": False, **plain, **flags}


def added(first: int) -> dict[str, dict[str, Any]]:
    """A special token, a plain one, one that eats spaces, one that is a whole word."""
    tokens = (
        token(SPECIAL, True),
        token(PLAIN),
        token(SPACED, lstrip=True, rstrip=True),
        token(WORD, single_word=True, normalized=True),
    )
    return {str(first + i): t for i, t in enumerate(tokens)}


@cache
def sentencepiece_model(**options: Any) -> bytes:
    out = io.BytesIO()
    plain = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        sentence_iterator=iter(LINES),
        model_writer=out,
        vocab_size=600,
        byte_fallback=True,
        minloglevel=2,
        **plain | {n: list(v) if isinstance(v, tuple) else v for n, v in options.items()},
    )
    return out.getvalue()


def pieces(folder: Path, tokenizer_class: str | None = None, model: dict[str, Any] | None = None, **about: Any) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(**model or {}))
    kind = {"tokenizer_class": tokenizer_class} if tokenizer_class else {}
    about = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **kind, **about}
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": added(600), **about})


def older(folder: Path) -> None:
    """Before tokenizer_config.json listed the added tokens."""
    pieces(folder, "LlamaTokenizer", legacy=False, add_bos_token=True, added_tokens_decoder=None, eos_token=SPECIAL)
    about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del about["added_tokens_decoder"]
    write(folder, "tokenizer_config.json", about)
    write(folder, "added_tokens.json", {SPECIAL: 600, PLAIN: 601})
    write(folder, "special_tokens_map.json", {"additional_special_tokens": [SPECIAL]})


def fast(folder: Path, tokenizer: Tokenizer, trainer: Any, **about: Any) -> None:
    tokenizer.train_from_iterator(LINES, trainer)
    first = tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(**t) for t in added(first).values()])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=5, pad_token=next(iter(about.values())))
    tokenizer.save(str(folder / "tokenizer.json"))
    write(
        folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8} | about
    )


def byte_level(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    pattern = r"'s|\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<eos>"], initial_alphabet=alphabet)
    fast(folder, tokenizer, trainer, eos_token="<eos>")


def bpe(folder: Path) -> None:
    """With words that end in a mark, and words of the vocabulary that tokenizer_config.json makes special."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"], end_of_word_suffix="</w>")
    fast(folder, tokenizer, trainer, unk_token="<unk>", eos_token="return</w>", clean_up_tokenization_spaces=True)


def unigram(folder: Path) -> None:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast(folder, tokenizer, trainer, unk_token="<unk>", bos_token="<s>")


def word_piece(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]", "[CLS]"])
    more = {"1": token("[CLS]", True), "700": token("<late>")}
    fast(folder, tokenizer, trainer, unk_token="[UNK]", bos_token="[CLS]", clean_up_tokenization_spaces=True)
    about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    more = {"1": more["1"], str(tokenizer.get_vocab_size()): more["700"]}
    write(folder, "tokenizer_config.json", about | {"added_tokens_decoder": more})


def marked_spaces(folder: Path, tokenizer_class: str, **about: Any) -> None:
    """Llama's tokenizer.json as it was written until 2024, with no tokenizer.model beside it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    spaces = decoders.Replace("\u2581", " ")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special, data = ["<unk>", "<s>", "</s>"], [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special + data, max_token_length=12)
    tokenizer.train_from_iterator(LINES, trainer)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = file["added_tokens"][: len(special)]
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_tokens([AddedToken(**t) for t in added(tokenizer.get_vocab_size()).values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **about}
    write(folder, "tokenizer_config.json", about | {"tokenizer_class": tokenizer_class})


USER_DEFINED = {"user_defined_symbols": ("<h1>", "\n\n", "   "), "control_symbols": ("<ctl>",)}
TRAINED = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}
LLAMA = "LlamaTokenizer"
FORMS: dict[str, Callable[[Path], None]] = {
    "sentencepiece, Llama": lambda f: pieces(f, LLAMA, legacy=False, add_bos_token=True),
    "sentencepiece, Llama, legacy": lambda f: pieces(f, LLAMA, USER_DEFINED, legacy=True, add_bos_token=True),
    "sentencepiece, Llama, unsaid": lambda f: pieces(f, LLAMA, USER_DEFINED, add_bos_token=True),
    "sentencepiece, Llama, no prefix": lambda f: pieces(f, LLAMA, add_prefix_space=False, add_bos_token=True),
    "sentencepiece, Llama, normalising": lambda f: pieces(f, LLAMA, TRAINED, legacy=False, add_bos_token=True),
    "sentencepiece, Llama, older": older,
    "sentencepiece, Gemma": lambda f: pieces(
        f, "GemmaTokenizer", USER_DEFINED | {"add_dummy_prefix": False}, add_bos_token=True, mask_token="<unk>",
        pad_token="</s>",
    ),
    "sentencepiece, any": lambda f: pieces(f, "PreTrainedTokenizerFast", USER_DEFINED, add_bos_token=True),
    "sentencepiece, unsaid": lambda f: pieces(f, None, add_bos_token=True),
    "sentencepiece, any, not legacy": lambda f: pieces(f, "TokenizersBackend", legacy=False, add_bos_token=True),
    "marked spaces, Llama": lambda f: marked_spaces(f, LLAMA),
    "marked spaces, Llama, legacy": lambda f: marked_spaces(f, "LlamaTokenizerFast", legacy=True),
    "marked spaces, Llama, no prefix": lambda f: marked_spaces(f, LLAMA, add_prefix_space=False),
    "marked spaces, Gemma": lambda f: marked_spaces(f, "GemmaTokenizer", pad_token="</s>", mask_token="<unk>"),
    "marked spaces, any": lambda f: marked_spaces(f, "PreTrainedTokenizerFast"),
    "byte level": byte_level,
    "BPE": bpe,
    "Unigram": unigram,
    "WordPiece": word_piece,
}  # fmt: skip


def odd_texts(count: int = 1000) -> list[str]:
    """Seeded, of words, code, scripts, marks, spaces of all kinds, and the names of tokens."""
    draw = random.Random(0)
    odd = "é naïve 北京 日本語 한국어 العربية हिन्दी 🙂 👩‍👩‍👧‍👦 🇩🇪 e\u0301 ﬁ ① ½ a b return self 1 2345 . n't don"
    spaces = ["\u200b", "\ufeff", "\u2028", "\x00", "\x1c", "\ufffd", "\u00a0", "\u3000", "\t", "\n", "\n\n", "\r\n"]
    marks = ["\u2581", "\u2581\u2581a", " .", " n't", "   ", " ", " ", " ", f" {SPACED} ", f"{WORD}s", f"{WORD} "]
    names = "<0x41> <0x <s> </s> <unk> <h1> <ctl> [CLS] [UNK] <eos> <late> ##ing </w> <tool |>"
    parts = [*(line[:40] for line in LINES[:200]), *odd.split(" "), *spaces, *marks, *names.split()]
    parts += [SPECIAL, PLAIN, SPACED, WORD]
    fixed = ["", " ", "  ", " a", "  a", "a ", "\n", "\u2581", f" {PLAIN}", f"{PLAIN} ", f"{PLAIN}{PLAIN} a", SPECIAL]
    return [*fixed, *("".join(draw.choices(parts, k=draw.randint(1, 8))) for _ in range(count - len(fixed)))]


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
