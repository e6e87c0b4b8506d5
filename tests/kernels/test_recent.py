"""What the CPU paths keep between calls: found by content, bounded, cleared, apart by thread."""

from concurrent.futures import ThreadPoolExecutor

import torch

from scfmlip_kernels import recent


def test_by_content():
    cache = recent.Recent(2)
    positions = torch.randn(3, 3)
    assert cache.find(positions, "key") is None
    kept = cache.keep(["value"], positions, "key")
    assert cache.find(positions.clone(), "key") is kept
    for other, key in ((positions, "other"), (positions.double(), "key"), (positions[:2], "key")):
        assert cache.find(other, key) is None
    positions[0] += 1
    assert cache.find(positions, "key") is None


def test_those_used_last_are_kept():
    cache, rows = recent.Recent(2), torch.eye(3)
    for n in range(2):
        cache.keep([n], rows[n])
    assert cache.find(rows[0]) == [0]
    cache.keep([2], rows[2])
    assert [cache.find(row) for row in rows] == [[0], None, [2]]


def test_clear_reaches_every_thread():
    cache, row = recent.Recent(2), torch.ones(1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(cache.keep, ["theirs"], row).result()
        cache.keep(["mine"], row)
        assert pool.submit(cache.find, row).result() == ["theirs"]
        recent.clear()
        assert cache.find(row) is None
        assert pool.submit(cache.find, row).result() is None
