import numpy as np
import pytest

from cluster.data.order import Mixture, Permutation, largest_remainder, rank_slice

AROUND_POWERS = [2**k + d for k in range(9, 18, 2) for d in (-1, 0, 1)]


@pytest.mark.parametrize("n", [*range(1, 301), *AROUND_POWERS])
def test_permutation_is_a_bijection_with_an_inverse(n):
    permutation = Permutation(n, (3, "epoch", 0))
    index = np.arange(n)
    image = permutation(index)
    assert np.array_equal(np.sort(image), index)
    assert np.array_equal(permutation.inverse(image), index)


def test_one_index_of_an_enormous_range_costs_no_memory_and_inverts():
    permutation = Permutation(10**17 + 3, ("big",))
    index = np.array([0, 1, 10**16, 10**17 + 2])
    image = permutation(index)
    assert ((image >= 0) & (image < permutation.n)).all()
    assert np.array_equal(permutation.inverse(image), index)


def test_scalar_and_vector_agree():
    permutation = Permutation(1000, (1,))
    assert [int(permutation(i)) for i in range(50)] == permutation(np.arange(50)).tolist()


def test_index_outside_the_range_is_refused():
    for index in (-1, 10):
        with pytest.raises(IndexError):
            Permutation(10, (0,))(index)
    with pytest.raises(ValueError, match="1 to"):
        Permutation(0, (0,))


@pytest.mark.parametrize("n", [1000, 4097, 65536])
def test_order_is_uncorrelated_with_the_index_and_between_keys(n):
    index = np.arange(n)
    first, second = Permutation(n, (0, "a"))(index), Permutation(n, (0, "b"))(index)
    bound = 4 / np.sqrt(n)
    assert abs(np.corrcoef(index, first)[0, 1]) < bound
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < bound  # neighbours


def test_a_flipped_bit_flips_half_of_the_bits():
    bits = 16
    permutation = Permutation(1 << bits, (5,))
    index = np.random.default_rng(0).integers(0, 1 << bits, 4000)
    for bit in range(bits):
        changed = permutation(index) ^ permutation(index ^ (1 << bit))
        flipped = sum(((changed >> b) & 1).mean() for b in range(bits)) / bits
        assert 0.46 < flipped < 0.54


def test_small_permutations_reach_every_order_about_equally():
    seen = {}
    for key in range(960):
        order = tuple(Permutation(4, (key,))(np.arange(4)).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert max(seen.values()) < 40 * 2 and min(seen.values()) > 40 / 2


def test_each_block_holds_exactly_the_share_of_each_source():
    mixture = Mixture({"a": 1000, "b": 50, "c": 77}, {"a": 0.5, "b": 0.3, "c": 0.2}, seed=4, block=64)
    for block in range(20):
        sources = mixture(np.arange(block * 64, (block + 1) * 64)).source
        assert np.bincount(sources, minlength=3).tolist() == [32, 19, 13]


def test_every_row_of_a_source_comes_once_in_each_of_its_epochs():
    mixture = Mixture({"a": 37, "b": 5}, {"a": 1, "b": 1}, seed=1, block=10)
    samples = mixture(np.arange(37 * 20))
    for number, rows in ((0, 37), (1, 5)):
        mine = samples.source == number
        for epoch in range(int(samples.epoch[mine].max())):
            seen = samples.row[mine & (samples.epoch == epoch)]
            assert sorted(seen.tolist()) == list(range(rows))


@pytest.mark.parametrize("block", [8, 1000])
def test_a_source_is_read_in_whole_epochs_whatever_the_block(block):
    """Nothing is repeated while another row is still unread."""
    samples = Mixture({"a": 60, "b": 31}, {"a": 1, "b": 1}, seed=2, block=block)(np.arange(500))
    for number, rows in ((0, 60), (1, 31)):
        mine = samples.source == number
        assert sorted(samples.row[mine][:rows].tolist()) == list(range(rows))
        assert (np.diff(samples.epoch[mine]) >= 0).all()


def test_epochs_are_in_different_orders():
    samples = Mixture({"a": 200}, seed=0, block=100)(np.arange(600))
    orders = [samples.row[samples.epoch == e].tolist() for e in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_sample_depends_on_its_number_and_the_seed_alone():
    def mixture(seed):
        return Mixture({"a": 100, "b": 30}, {"a": 2, "b": 1}, seed=seed, block=32)

    whole = np.stack(mixture(0)(np.arange(300)))
    for start in (0, 1, 31, 32, 33, 299):  # a resumed run, in another process
        assert np.array_equal(np.stack(mixture(0)(np.arange(start, 300))), whole[:, start:])
    assert not np.array_equal(np.stack(mixture(1)(np.arange(300))), whole)


def test_weight_zero_leaves_a_source_out_and_no_weights_means_by_size():
    samples = Mixture({"a": 10, "b": 0, "c": 10}, {"a": 1, "b": 0, "c": 0})(np.arange(5000))
    assert set(samples.source.tolist()) == {0}
    by_size = Mixture({"a": 300, "b": 100}, block=400)(np.arange(400))
    assert np.bincount(by_size.source).tolist() == [300, 100]
    assert (by_size.epoch == 0).all()  # so an epoch of the mixture is an epoch of each source


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1}, "nothing for .'b'."),
        ({"a": 1, "b": 1, "c": 1}, ".'c'. has a weight, but"),
        ({"a": -1, "b": 1}, "0 or more"),
        ({"a": float("nan"), "b": 1}, "0 or more"),
        ({"a": 0, "b": 0}, "All weights"),
        ({"a": 1, "b": 1e-9}, "less than one sample"),
    ],
)
def test_weights_that_do_not_fit_the_sources_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture({"a": 10, "b": 10}, weights)


def test_a_weighted_source_without_rows_is_refused():
    with pytest.raises(ValueError, match="no training tokens"):
        Mixture({"a": 10, "b": 0}, {"a": 1, "b": 1})


def test_largest_remainder_is_exact_in_total_and_within_one_of_each_share():
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = rng.random(rng.integers(1, 9))
        total = int(rng.integers(1, 5000))
        counts = largest_remainder(weights, total)
        assert counts.sum() == total
        assert (abs(counts - weights / weights.sum() * total) < 1).all()


@pytest.mark.parametrize("batch_size", [1, 5, 8, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_a_batch_without_gap_or_overlap(batch_size, world_size):
    batch = list(range(batch_size))
    joined = [s for rank in range(world_size) for s in batch[rank_slice(batch_size, rank, world_size)]]
    assert joined == batch


def test_a_source_that_is_small_beside_the_others_is_read_as_often_as_its_share():
    for rows, weights in (({"a": 9000, "b": 1}, None), ({"a": 10, "b": 3}, {"a": 1.0, "b": 1e-4})):
        mixture = Mixture(rows, weights, seed=1)
        assert 1024 < mixture.block <= 1 << 14
        sources = mixture(np.arange(mixture.block)).source
        assert (sources == 1).sum() == mixture.counts[1] == 1
    assert Mixture({"a": 900, "b": 1}, None).block == 1024, "nothing changes where each has a sample"
