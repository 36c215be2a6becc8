"""Imported tokenizers encode and decode as `AutoTokenizer` does, in every form that the hub has."""

import json

import pytest
from their_tokenizers import FORMS, PLAIN, SPECIAL, added, byte_level, odd_texts, pieces, token, write
from transformers import AutoTokenizer

from cluster.data.tokenizer.declared import read_declared
from cluster.data.tokenizer.exchange import export_tokenizer, import_tokenizer
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError


@pytest.fixture(scope="module", params=list(FORMS))
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    FORMS[request.param](folder)
    write(folder, "config.json", {"model_type": "llama"})
    ours = folder / "ours"
    ours.mkdir()
    assert import_tokenizer(folder, ours, 10_000)
    return Tokenizer(ours), AutoTokenizer.from_pretrained(folder)


def test_a_thousand_odd_texts_are_encoded_and_decoded_alike(both):
    ours, theirs = both
    texts = odd_texts()
    assert len(texts) == 1000
    for special in (False, True):
        ids = theirs(texts, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
        kept, left_out = (theirs.batch_decode(ids, skip_special_tokens=skip) for skip in (False, True))
        for number, text in enumerate(texts):
            assert ours.encode(text, special=special) == ids[number], repr(text)
            assert ours.decode(ids[number], keep_special=True) == kept[number], repr(text)
            assert ours.decode(ids[number]) == left_out[number], repr(text)


@pytest.mark.parametrize(
    ("about", "begins", "ends"),
    [
        ({"bos_token": "<s>", "eos_token": "<eos>"}, ["<s>"], ["<eos>"]),
        ({"eos_token": "<eos>"}, ["<eos>"], ["<eos>"]),
        ({"bos_token": "<s>"}, ["<s>"], []),
        ({}, [], []),
    ],
)
def test_a_document_begins_and_ends_with_what_the_tokenizer_has(tmp_path, about, begins, ends):
    byte_level(tmp_path)
    file = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    size = 1 + max(t["id"] for t in file["added_tokens"])
    tokens = {str(max(size, len(file["model"]["vocab"]))): token("<s>", True)}
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast",
                                              "added_tokens_decoder": tokens} | about)  # fmt: skip
    write(tmp_path, "config.json", {"model_type": "llama"})
    (tmp_path / "ours").mkdir()
    import_tokenizer(tmp_path, tmp_path / "ours", 10_000)
    ours = Tokenizer(tmp_path / "ours")
    ids = ours.encode_document("The quick fox")
    names = {"<s>": ours.bos_id, "<eos>": ours.eos_id}
    assert ids == [*(names[n] for n in begins), *ours.encode("The quick fox"), *(names[n] for n in ends)]
    assert ours.pad_id >= 0


def test_every_id_goes_in_and_out(both):
    ours, theirs = both
    assert ours.vocab_size == len(theirs)
    texts = theirs.batch_decode([[i] for i in range(ours.vocab_size)])
    assert [ours.decode([i], keep_special=True) for i in range(ours.vocab_size)] == texts
    assert [ours.encode(text, special=True) for text in texts] == theirs(texts, add_special_tokens=False)["input_ids"]
    for name in (SPECIAL, PLAIN):
        i = theirs.convert_tokens_to_ids(name)
        assert ours.encode(name, special=True)[-1] == i
        assert ours.decode([i], keep_special=True) == name
    assert theirs.convert_tokens_to_ids(SPECIAL) not in ours.encode(SPECIAL)


def test_the_bytes_of_each_token_make_its_text(both, request):
    """All but its first spaces, of which some put one before a text, and take some away."""
    ours, _ = both
    if request.node.callspec.params["both"] in ("BPE", "WordPiece"):
        with pytest.raises(UserError, match="have no bytes of their own"):
            ours.pieces()
        return
    pieces, told = ours.pieces(), 0
    assert len(pieces) == ours.vocab_size
    for text in odd_texts(300):
        ids = ours.encode(text)
        if all(pieces[i] is not None for i in ids):
            joined, told = b"".join(pieces[i] for i in ids).decode(), told + 1
            assert joined.lstrip(" ") == ours.decode(ids).lstrip(" "), repr(text)
    assert told > 50


def test_a_text_begins_with_bos_where_theirs_does(both):
    ours, theirs = both
    with_bos = theirs("fox", split_special_tokens=True)["input_ids"]
    assert ours.encode("fox", bos=True) == with_bos


def test_each_id_of_what_a_template_wrote_stands_for_its_own_characters(both):
    ours, theirs = both
    text = f"{SPECIAL}the quick brown fox{SPECIAL} jumps over {SPECIAL} it{SPECIAL}x"
    quoted = text.index(SPECIAL, text.index("over"))
    ids, spans = ours.encode_rendered(text, [(quoted, quoted + len(SPECIAL))])
    assert ids.count(theirs.convert_tokens_to_ids(SPECIAL)) == 3, "the fourth is a person's words"
    for i, (begin, end) in zip(ids, spans, strict=True):
        alone = theirs.decode([i]).strip().removeprefix("##")  # nothing: a prefix, which stands for what follows
        assert end > begin and text[begin:end].strip() == (alone or text[begin:end].strip()), (i, begin, end)
    assert "".join(text[begin:end] for begin, end in dict.fromkeys(spans)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"602": token("<a>")}, "'<a>' has the id 602, but the ids before it end at 599"),
        ({"600": token("<a>"), "602": token("<b>")}, "'<b>' has the id 602"),
        ({"600": token("e")}, "'e' has the id 600, but tokenizer.model has it as piece"),
        ({"600": token("")}, "600 has no text"),
        ({"-1": token("<a>")}, "no id"),
        ({"x": token("<a>")}, "'x' is not a token's id"),
        ([token("<a>")], "must be an object, not a list"),
    ],
)
def test_a_token_that_no_text_could_become_is_refused(tokens, message, tmp_path):
    pieces(tmp_path, "LlamaTokenizer", added_tokens_decoder=tokens)
    with pytest.raises(UserError, match=message):
        import_tokenizer(tmp_path, tmp_path, 10_000)


def test_tokens_that_only_the_other_file_declares_are_added(tmp_path):
    """Beside a tokenizer.model; where the model itself is the tokenizer.json, they are in it already."""
    write(tmp_path, "tokenizer.json", {"added_tokens": [{"id": 600, "content": "<a>", "special": True}]})
    found = read_declared(tmp_path, {})
    assert found.keys() == {600} and found[600]["content"] == "<a>" and found[600]["special"]
    assert read_declared(tmp_path, {}, tokenizer_json=False) == {}
    write(tmp_path, "added_tokens.json", {"<b>": 601})
    assert read_declared(tmp_path, {}).keys() == {601}, "it says it, and the other is another loader's"


def test_a_token_whose_id_contradicts_the_tokenizer_is_refused(tmp_path):
    byte_level(tmp_path)
    about = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(tmp_path, "tokenizer_config.json", about | {"added_tokens_decoder": {"900": token("<far>", True)}})
    with pytest.raises(UserError, match=r"'<far>' has the id 900 in tokenizer_config.json .* and 604 in"):
        import_tokenizer(tmp_path, tmp_path, 10_000)


def test_more_ids_than_the_model_has_rows_are_refused(tmp_path):
    pieces(tmp_path, "LlamaTokenizer")
    with pytest.raises(UserError, match=f"{600 + len(added(0))} ids, the model only 600"):
        import_tokenizer(tmp_path, tmp_path, 600)


def test_no_file_is_written_outside_the_folder(tmp_path):
    byte_level(tmp_path)
    (tmp_path / "ours").mkdir()
    import_tokenizer(tmp_path, tmp_path / "ours", 10_000)
    info = json.loads((tmp_path / "ours" / "tokenizer.json").read_text(encoding="utf-8"))
    write(tmp_path / "ours", "tokenizer.json", info | {"files": info["files"] | {"../outside.txt": "x"}})
    with pytest.raises(UserError, match=r"\.\./outside\.txt"):
        export_tokenizer(Tokenizer(tmp_path / "ours"), tmp_path / "ours", 64)
    assert not (tmp_path / "outside.txt").exists()
