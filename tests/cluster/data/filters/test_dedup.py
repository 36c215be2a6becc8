"""MinHash finds what exact Jaccard similarity says, as often as the theory says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cluster.data.filters.dedup import MinHash, candidates, clusters, digest, find_duplicates, shingles
from cluster.data.filters.words import SOLID, WORD, Words, batches, mix

VOCABULARY = [f"w{i}" for i in range(5000)]


def text(rng: random.Random, words: int = 300) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(words))


def pair(rng: random.Random, similarity: float, words: int = 300) -> tuple[str, str]:
    """Two texts of about this Jaccard similarity over their shingles: a block of words is another."""
    one = [rng.choice(VOCABULARY) for _ in range(words)]
    changed = int(words * (1 - 2 * similarity / (1 + similarity)))
    return " ".join(one), " ".join([rng.choice(VOCABULARY) for _ in range(changed)] + one[changed:])


def jaccard(a: str, b: str, ngram: int = 5) -> float:
    """The exact similarity that MinHash estimates."""
    values, first = shingles([a, b], ngram)
    one, two = set(values[: first[1]].tolist()), set(values[first[1] :].tolist())
    return len(one & two) / len(one | two) if one or two else 1.0


def probability(minhash: MinHash, similarity: float) -> float:
    """That two documents of this Jaccard similarity become candidates: the banding's S-curve."""
    return 1.0 - (1.0 - similarity**minhash.rows) ** minhash.bands


def pairs(similarity: float, count: int = 400) -> tuple[list[str], list[str], np.ndarray]:
    rng = random.Random(int(similarity * 100))
    ones, twos = zip(*(pair(rng, similarity) for _ in range(count)), strict=True)
    return list(ones), list(twos), np.array([jaccard(a, b) for a, b in zip(ones, twos, strict=True)])


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.7, 0.8, 0.9])
def test_equal_minima_estimate_jaccard_without_bias_and_the_banding_follows_its_curve(similarity):
    minhash = MinHash()
    ones, twos, exact = pairs(similarity)
    a, b = minhash.signatures(ones), minhash.signatures(twos)
    estimate = (a == b).mean(axis=1)
    spread = np.sqrt(exact * (1 - exact) / a.shape[1])  # of a binomial share
    assert abs(estimate - exact).mean() < 1.1 * spread.mean()
    assert abs((estimate - exact).mean()) < 4 * spread.mean() / np.sqrt(len(exact))
    hit = (minhash.band_keys(a) == minhash.band_keys(b)).any(axis=1).mean()
    expected = np.mean([probability(minhash, s) for s in exact])
    assert abs(hit - expected) < 4 * np.sqrt(expected * (1 - expected) / len(exact)) + 0.005


def test_every_hash_function_ranks_every_shingle_alike():
    """Each position of a random set is the minimum equally often: what minimum-wise hashing needs."""
    rng = np.random.default_rng(0)
    values, minhash = mix(rng.integers(0, 1 << 60, (400, 8), np.uint64)), MinHash()
    wins = np.zeros(8)
    for a, b in minhash._family():
        wins += np.bincount((values * a + b).argmin(axis=1), minlength=8)
    share = wins / wins.sum()
    assert abs(share - 1 / 8).max() < 0.01


def test_the_hash_family_is_exact_modulo_2_to_the_64():
    values = mix(np.arange(1000, dtype=np.uint64))
    for a, b in MinHash()._family()[:8]:
        assert int(a) % 2 == 1
        expected = [((int(a) * int(x) + int(b)) % 2**64) >> 32 for x in values]
        assert ((values * a + b) >> np.uint64(32)).tolist() == expected


def test_signature_of_a_text_does_not_depend_on_its_neighbours():
    rng = random.Random(1)
    texts = ["", "one", *(text(rng, n) for n in (1, 4, 5, 6, 50, 3000)), "!!!", *(text(rng, 800) for _ in range(200))]
    together = MinHash().signatures(texts)
    for place in (0, 1, 2, 3, 4, 5, 6, 7, 8, 100, 207):
        assert (together[place] == MinHash().signatures([texts[place]])[0]).all()


def test_recall_and_precision_among_planted_near_copies():
    rng, texts, planted = random.Random(2), [], {}
    for _ in range(600):
        texts.append(text(rng))
    for original in range(300):
        copy = pair(rng, 0.0)[1].split()[:6] + texts[original].split()[6:]  # six of 300 words: Jaccard about 0.94
        planted[len(texts)] = original
        texts.append(" ".join(copy))
    ids = [f"{i:05d}" for i in range(len(texts))]
    minhash = MinHash()
    stays, exact = find_duplicates(ids, unique(len(texts)), minhash.band_keys(minhash.signatures(texts)))
    found = {i: int(stays[i]) for i in range(len(texts)) if stays[i] != i}
    assert not exact.any()
    assert len(found.keys() & planted.keys()) / len(planted) > 0.99
    assert all(planted.get(i) == original for i, original in found.items())  # nothing else was taken for a copy


def unique(count: int) -> np.ndarray:
    return np.stack([np.arange(count, dtype=np.uint64)] * 2, axis=1)


def digests(texts: list[str]) -> np.ndarray:
    return np.frombuffer(b"".join(map(digest, texts)), np.uint64).reshape(len(texts), 2)


def test_what_stays_is_the_smallest_id_whatever_the_order_of_the_documents():
    rng = random.Random(3)
    base = [text(rng, 100) for _ in range(40)]
    documents = [(f"{rng.random():.9f}", rng.choice(base) + rng.choice(["", "", " and more"])) for _ in range(300)]
    kept = []
    for seed in range(3):
        random.Random(seed).shuffle(documents)
        ids, texts = map(list, zip(*documents, strict=True))
        minhash = MinHash()
        stays, _ = find_duplicates(ids, digests(texts), minhash.band_keys(minhash.signatures(texts)))
        kept.append({name: ids[place] for name, place in zip(ids, stays, strict=True)})
        assert all(other <= name for name, other in kept[-1].items())
        assert len(set(kept[-1].values())) == 40
    assert kept[0] == kept[1] == kept[2]


def test_exact_copies_are_told_from_near_ones():
    texts = ["b c d e f g", "a", "b c d e f g  \n", "B, c; d e f g", "a b"]
    minhash = MinHash()
    keys = minhash.band_keys(minhash.signatures(texts))
    stays, exact = find_duplicates(list("zyxwv"), digests(texts), keys)
    assert stays.tolist() == [3, 1, 3, 3, 4]
    assert exact.tolist() == [True, False, False, False, False]
    stays, exact = find_duplicates(list("zyxwv"), digests(texts), None)
    assert stays.tolist() == [2, 1, 2, 3, 4]


def test_texts_without_words_are_no_copies_of_each_other():
    texts = ["!!!", "???", "--- ---"]
    minhash = MinHash()
    stays, _ = find_duplicates(list("abc"), digests(texts), minhash.band_keys(minhash.signatures(texts)))
    assert stays.tolist() == [0, 1, 2]


def test_copies_of_copies_are_one_cluster():
    assert clusters(6, np.array([(4, 5), (3, 4), (1, 3), (4, 5)])).tolist() == [0, 1, 2, 1, 1, 1]
    assert clusters(3, np.zeros((0, 2), np.int64)).tolist() == [0, 1, 2]
    assert clusters(0, np.zeros((0, 2), np.int64)).tolist() == []
    assert candidates(np.array([7, 3, 7, 3, 9, 7])).tolist() == [[1, 3], [0, 2], [0, 5]]


@pytest.mark.parametrize("table,split", [(WORD, str.split), (SOLID, str.split)])
def test_words_are_those_of_str_split(table, split):
    texts = ["", " a", "b c  d\n", "naïve café", "x" * 100, "a\tb\x0bc"]
    words = Words(texts, table)
    found = [bytes(words.buffer[a:b]).decode() for a, b in zip(words.start, words.stop, strict=True)]
    assert found == [word for one in texts for word in split(one)]
    assert words.counts.tolist() == [len(split(one)) for one in texts]
    assert words.lengths.tolist() == [len(word) for word in found]


def test_each_chinese_character_is_a_word():
    words = Words(["你好ab世界x", "日本語のテキスト", "é你"], WORD, split_unspaced=True)
    found = [bytes(words.buffer[a:b]).decode() for a, b in zip(words.start, words.stop, strict=True)]
    assert found == [*"你好", "ab", *"世界", "x", *"日本語のテキスト", "é", "你"]


def test_equal_words_have_equal_hashes_and_others_do_not():
    rng = random.Random(4)
    words = [rng.choice(VOCABULARY) + rng.choice("abc") for _ in range(20_000)]
    found = Words([" ".join(words[:7000]), " ".join(words[7000:])], SOLID).hashes
    assert len(set(zip(words, found.tolist(), strict=True))) == len(set(words)) == len(set(found.tolist()))


def test_batches_cover_all_texts_once():
    texts = ["x" * n for n in (10, 0, 700, 3, 900, 1)]
    assert [i for part in batches(texts, 500) for i in range(*part.indices(6))] == [0, 1, 2, 3, 4, 5]
    assert batches([], 500) == []


def test_a_band_key_tells_apart_its_rows_values_and_their_order():
    minhash = MinHash(bands=2, rows=3)
    rows = np.array([[1, 2, 3, 7, 8, 9], [3, 2, 1, 7, 8, 9], [1, 2, 3, 7, 8, 10], [2, 2, 2, 7, 9, 8]], np.uint32)
    keys = minhash.band_keys(rows)
    assert (keys[:, :1] == keys[:, 0]).tolist() == (rows[:, None, :3] == rows[None, :, :3]).all(axis=2).tolist()
    assert (keys[:, 1:] == keys[:, 1]).tolist() == (rows[:, None, 3:] == rows[None, :, 3:]).all(axis=2).tolist()
