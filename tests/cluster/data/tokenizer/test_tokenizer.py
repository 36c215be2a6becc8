import hashlib
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.data.tokenizer.sample import shares
from cluster.data.tokenizer.tokenizer import SPECIAL, Tokenizer
from cluster.data.tokenizer.training import TokenizerConfig, sentences, train
from cluster.errors import Stopped, UserError
from cluster.stage import Hooks, Surroundings, run_step
from tests.cluster.data import given as given_

TEXTS = [text for _, text in given_.some_documents()]
CODE = "def f(x):\n\n    if x:\r\n\t\treturn  [1, 23]   \n\n\n"


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    return train(TEXTS, TokenizerConfig(vocab_size=400, algorithm=request.param))


@settings(max_examples=300)
@given(text=st.text() | st.text(alphabet=" \n\t\r\u2581a1<|>é漢\0\u200b\ufeff\u0301", max_size=40))
@example(CODE)
@example(" ")
@example("\u2581")
@example(" \u2581 \u2581\u2581\n\u2581")
@example("\ufffd\ufeff\u2028\x00\x1c")
@example("<s></s><pad><unk><|end|><0x41>")
def test_decode_gives_back_what_was_encoded(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id}


@given(pieces=st.lists(st.sampled_from([*SPECIAL, "<s>", "</s>", "<pad>", "<unk>", " ", "a"])))
def test_text_never_becomes_a_special_id(tokenizer, pieces):
    ids = tokenizer.encode("".join(pieces))
    special = {*tokenizer.special.values(), tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id}
    assert not special & set(ids)
    assert tokenizer.decode(ids) == "".join(pieces)


def test_a_lone_surrogate_becomes_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b🙂")) == "a\ufffdb🙂"


def test_the_ids_with_a_meaning_are_those_of_the_sentencepiece_model(tokenizer):
    model = tokenizer.processor
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id)
    assert ids == (model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id()) and len(set(ids)) == 4


def test_a_piece_has_at_least_a_character():
    assert TokenizerConfig(max_piece_length=1).max_piece_length == 1
    with pytest.raises(ValidationError, match="max_piece_length"):
        TokenizerConfig(max_piece_length=0)


def test_digits_are_single_tokens(tokenizer):
    digits = tokenizer.encode("31415")
    assert [tokenizer.decode([i]) for i in digits if tokenizer.decode([i]).strip()] == list("31415")


def test_special_tokens_have_ids_and_show_only_when_asked(tokenizer):
    ids = [tokenizer.bos_id, tokenizer.special["<|user|>"], tokenizer.special["<|end|>"]]
    assert len({*ids, *tokenizer.special.values()}) == 5
    mixed = [ids[0], ids[1], *tokenizer.encode(" fox"), ids[2], tokenizer.pad_id]
    assert tokenizer.decode(mixed) == " fox"
    assert tokenizer.decode(mixed, keep_special=True) == "<s><|user|> fox<|end|><pad>"
    assert tokenizer.encode("fox", bos=True, eos=True)[:: len(tokenizer.encode("fox")) + 1] == [2, 3]


def test_saved_and_pickled_tokenizers_are_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    expected = [tokenizer.encode(text) for text in TEXTS[:20]]
    for same in (Tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert [same.encode(text) for text in TEXTS[:20]] == expected
    with pytest.raises(ValueError, match="tokenizer"):
        Tokenizer(tmp_path / "nowhere")


def test_training_twice_gives_the_same_bytes(tokenizer):
    config = TokenizerConfig(vocab_size=400, algorithm=tokenizer.info["algorithm"])
    assert train(TEXTS, config).model == tokenizer.model


def test_a_vocabulary_that_the_text_cannot_fill_names_the_largest_possible():
    for algorithm in ("bpe", "unigram"):
        with pytest.raises(ValueError, match="largest size possible here is ") as error:
            train(["hello world, hello fox"] * 3, TokenizerConfig(vocab_size=9000, algorithm=algorithm))
        largest = int(str(error.value).split("possible here is ")[1].split(".")[0])
        config = TokenizerConfig(vocab_size=largest, algorithm=algorithm)
        assert train(["hello world, hello fox"] * 3, config).vocab_size == largest


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "text", ["\n\n\r\n", "a" * 50, "\0a\0aa", "\u3000" * 9, "😀" * 50, "<|user|>" * 20, "<s></s><unk>"]
)
def test_text_that_no_pieces_can_be_made_of_is_the_person_s_and_not_a_fault(algorithm, text):
    with pytest.raises(UserError, match=r"sample of \d+ characters (has nothing to make pieces of|can fill)"):
        train([text], TokenizerConfig(vocab_size=320, algorithm=algorithm))


def test_an_alphabet_larger_than_the_vocabulary_falls_back_to_bytes():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    tokenizer = train([text, *TEXTS], TokenizerConfig(vocab_size=500))
    assert tokenizer.vocab_size == 500
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(alphabet="ab \n\u00e9", max_size=9000))
def test_training_sentences_join_to_the_text(text):
    parts = list(sentences(text))
    assert "".join(parts) == text
    assert all(0 < len(part) <= 2000 for part in parts)


def test_shares_fill_small_sources_and_give_their_rest_to_the_others():
    equal = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert shares({"a": 100, "b": 1000, "c": 5000}, equal, 1500) == {"a": 100, "b": 700, "c": 700}
    assert shares({"a": 10, "b": 20, "c": 30}, equal, 1000) == {"a": 10, "b": 20, "c": 30}
    assert shares({"a": 100, "b": 100, "c": 0}, {"a": 3, "b": 0, "c": 1}, 50) == {"a": 50, "b": 0, "c": 0}


def test_stage_makes_the_same_model_again_whatever_the_units_of_work(ray_local, tmp_path):
    documents = given_.some_documents()
    digests = []
    for number, group_bytes in enumerate((4000, 1 << 20)):
        step = given_.tokenizer_step(given_.given(documents, group_bytes), sample_mb=0.02)
        artifact = given_.make(step, tmp_path / str(number))
        digests.append(hashlib.sha256((artifact.path() / "tokenizer.model").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert Tokenizer(artifact.path()).vocab_size == 400
    assert set(artifact.summary["bytes_per_token"]) == {"prose", "code"}
    assert all(1 < rate < 10 for rate in artifact.summary["bytes_per_token"].values())
    assert 0.3 * 20_000 < artifact.summary["sample_bytes"] < 3 * 20_000


@pytest.mark.parametrize("seed", range(3))
def test_each_source_is_in_the_sample_however_few_documents_it_has(ray_local, tmp_path, seed):
    documents = [*[("few", given_.sentences(i, 300)) for i in range(3)], ("one", given_.sentences(9, 5))]
    documents += [("blank", " \n\t\u3000"), ("blank", "\0 "), ("little", " \n" * 70_000 + "A few words.")]
    step = given_.tokenizer_step(given_.given(documents), vocab_size=290, sample_mb=0.008, seed=seed)
    sizes = given_.make(step, tmp_path).summary["sample"]
    assert sizes == {"blank": 0, "few": sizes["few"], "little": 12, "one": len(given_.sentences(9, 5))}
    assert 0 < sizes["few"] <= 70_000


def test_a_sample_without_text_is_named_by_its_sources(ray_local, tmp_path):
    documents = given_.given([("a", " \n"), ("b", "\0\t"), ("c", "Text.")])
    with pytest.raises(UserError, match=r"of a, b hold no text .* sources of weight 0 in tokenizer.weights \(c\)"):
        given_.make(given_.tokenizer_step(documents, weights={"c": 0}), tmp_path)
    with pytest.raises(UserError, match=r"The sample is 5 bytes of c; tokenizer.sample_mb is 20\."):
        given_.make(given_.tokenizer_step(documents), tmp_path)
    with pytest.raises(ValidationError):
        TokenizerConfig(weights={"c": -1})


def test_stage_says_what_is_wrong_with_its_input(ray_local, tmp_path):
    documents = given_.given(given_.some_documents())
    with pytest.raises(ValueError, match="largest size possible"):
        given_.make(given_.tokenizer_step(documents, vocab_size=60_000), tmp_path)
    with pytest.raises(ValueError, match=r"names .*web"):
        given_.make(given_.tokenizer_step(documents, weights={"web": 1.0}), tmp_path)
    with pytest.raises(ValueError, match="no text"):
        given_.make(given_.tokenizer_step(given_.given([("prose", "")])), tmp_path)


def test_stage_stops_when_asked(ray_local, tmp_path):
    from cluster.store.artifact import Artifacts

    step = given_.tokenizer_step(given_.given(given_.some_documents()))
    with pytest.raises(Stopped):
        run_step(step, Artifacts(str(tmp_path)), Surroundings(hooks=Hooks(stopping=lambda: True)))
    assert Artifacts(str(tmp_path)).find("tokenizer", "x") is None
