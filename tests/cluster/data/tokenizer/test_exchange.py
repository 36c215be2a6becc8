"""Our tokenizer as `AutoTokenizer` loads it, and theirs as ours."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cluster.data.tokenizer.chat import render, render_prompt
from cluster.data.tokenizer.exchange import export_tokenizer, import_tokenizer
from cluster.data.tokenizer.tokenizer import SPECIAL, Tokenizer
from cluster.data.tokenizer.training import TokenizerConfig, train
from tests.cluster.data import given as given_

TEXTS = [text for _, text in given_.some_documents()]
SOURCES = [
    p.read_text(encoding="utf-8") for p in sorted(Path(__file__).parents[4].glob("cluster/**/*.py")) if p.stat().st_size
][:20]
ODD = [
    "",
    " ",
    "   a  b   ",
    "\n\n\n\t\n x\n",
    "\u2581 \u2581\u2581\n\u2581a",
    "naïve café — “quoted” 北京 日本語 한국어 العربية हिन्दी",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200b\ufeff\u2028\x00\x1c\ufffd",
    "<0x41><0xFF> <0x4",
    "aaaaaaaaaaaaaaaaa" + " " * 37 + "=" * 41 + "ababababababab" + "lolololol" + "\t" * 9,
    "def f(x):\r\n\tif x:\n            return  [1, 23, 456]   \n\n\n",
]
MESSAGES = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": " What is\n\n2 + 3? "},
    {"role": "assistant", "content": "\n5"},
    {"role": "user", "content": "And 🙂?"},
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def both(request, tmp_path_factory):
    """Ours, and theirs made of it."""
    ours = train(TEXTS + SOURCES, TokenizerConfig(vocab_size=900, algorithm=request.param))
    folder = tmp_path_factory.mktemp(request.param)
    export_tokenizer(ours, folder, 64)
    return ours, AutoTokenizer.from_pretrained(folder), folder


def real_texts() -> list[str]:
    lines = [line for text in SOURCES for line in text.split("\n\n")]
    return [*ODD, *TEXTS[:40], *lines[:400], *SOURCES]


def same(ours, theirs, text):
    ids = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == ours.encode(text), repr(text)
    assert theirs.decode(ids) == text


def test_texts_of_every_kind_are_encoded_and_decoded_alike(both):
    ours, theirs, _ = both
    assert len(real_texts()) > 300
    for text in real_texts():
        same(ours, theirs, text)


@settings(max_examples=300)
@given(text=st.text() | st.text(alphabet=" \n\t\r\u2581a1<|>é漢=#", max_size=60))
@example("<s></s><pad><unk><|end|><0x41>")
def test_any_text_is_encoded_alike(both, text):
    same(both[0], both[1], text)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_the_text_of_a_token_never_becomes_it_whatever_the_alphabet_lacks(algorithm, tmp_path):
    """Neither a special token nor a byte's: here "|", "<", "x", digits and capitals have no pieces."""
    ours = train(["the fox runs over a dog. " * 50], TokenizerConfig(vocab_size=275, algorithm=algorithm))
    export_tokenizer(ours, tmp_path, 64)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    names = [ours.processor.id_to_piece(i) for i in range(264)]  # special tokens and bytes
    for name in names:
        for text in (name, f"the {name} fox", f"🙂{name}{name}\n"):
            same(ours, theirs, text)
    for text in ODD:
        same(ours, theirs, text)


def test_special_tokens_keep_their_ids_and_a_text_begins_with_bos(both):
    ours, theirs, _ = both
    assert theirs.convert_tokens_to_ids([*SPECIAL]) == [ours.special[name] for name in SPECIAL]
    assert theirs.convert_tokens_to_ids(["<s>", "</s>", "<pad>"]) == [ours.bos_id, ours.eos_id, ours.pad_id]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert theirs("fox")["input_ids"] == ours.encode("fox", bos=True)
    assert len(theirs) == ours.vocab_size
    ids = [ours.bos_id, ours.special["<|user|>"], *ours.encode(" fox"), ours.end_id]
    assert theirs.encode("<s><|user|> fox<|end|>", add_special_tokens=False) == ids
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids) == " fox"
    assert theirs.decode(ids) == ours.decode(ids, keep_special=True)


def test_the_chat_template_is_ours(both):
    ours, theirs, _ = both

    def ids(messages, prompt):
        return list(theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False))

    assert ids(MESSAGES, True) == render_prompt(ours, MESSAGES)
    assert ids(MESSAGES[1:3], False) == render(ours, MESSAGES[1:3]).ids
    for wrong in (MESSAGES[2:], [MESSAGES[1], MESSAGES[1]], [MESSAGES[0], MESSAGES[0]]):
        with pytest.raises(Exception, match="Here comes"):
            ids(wrong, False)


def test_ours_comes_back(both, tmp_path):
    ours, _, folder = both
    assert "trained by tokenmill" in str(import_tokenizer(folder, tmp_path, 1000))
    again = Tokenizer(tmp_path)
    assert (again.model, again.info) == (ours.model, ours.info)
    with pytest.raises(ValueError, match="900 ids, the model only 899"):
        import_tokenizer(folder, tmp_path, 899)


def test_a_byte_level_tokenizer_runs_and_goes_back_as_it_came(tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SOURCES, vocab_size=600, special_tokens=["<|endoftext|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"eos_token_id": 0}), encoding="utf-8")
    (tmp_path / "ours").mkdir()
    assert "tokenizers" in str(import_tokenizer(tmp_path / "theirs", tmp_path / "ours", 640))
    ours = Tokenizer(tmp_path / "ours")
    for text in real_texts():
        ids = ours.encode(text, bos=True)
        assert ids == fast(text, split_special_tokens=True)["input_ids"]
        assert ours.decode(ids) == text == ours.decode([*ids, 0, 630])
    assert ours.stop_ids == (0,)
    assert 0 not in ours.encode("<|endoftext|>")
    with pytest.raises(ValueError, match="no roles to chat in"):
        render(ours, MESSAGES)
    (tmp_path / "again").mkdir()
    export_tokenizer(ours, tmp_path / "again", 64)
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert all(again(text)["input_ids"] == fast(text)["input_ids"] for text in real_texts())


def test_another_sentencepiece_model_runs_as_it_was_trained(tmp_path):
    """With a dummy prefix, as Llama's: a completion's first space is kept, since it goes on from a prompt."""
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        sentence_iterator=iter([line for text in SOURCES for line in text.splitlines()]),
        model_writer=out,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    ids = {"bos_token_id": 1, "eos_token_id": [2, 7]}
    (tmp_path / "config.json").write_text(json.dumps(ids), encoding="utf-8")
    (tmp_path / "ours").mkdir()
    assert import_tokenizer(tmp_path, tmp_path / "ours", 600) == "sentencepiece"
    ours = Tokenizer(tmp_path / "ours")
    processor = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    text = "return self.model"
    assert ours.encode(text, bos=True) == [1, *processor.encode(text)]
    assert ours.decode(ours.encode(text)) == text
    assert ours.decode(ours.encode(text), continues=True) == f" {text}"
    assert ours.stop_ids == (2, 7)
    (tmp_path / "again").mkdir()
    written, _ = export_tokenizer(ours, tmp_path / "again", 64)
    assert written == ids
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == out.getvalue()
