"""How work is dealt out."""

from __future__ import annotations

import pytest

from oxa.runtime.shards import Shards


class Numbered(Shards):
    """One of several processes; what it deals needs no launcher."""

    def __init__(self, rank: int, num: int) -> None:
        self.rank, self.num = rank, num


@pytest.mark.parametrize("num", [1, 2, 5])
def test_shares_are_disjoint_even_and_whole(num: int) -> None:
    shares = [Numbered(rank, num).share(range(13)) for rank in range(num)]
    assert sorted(item for share in shares for item in share) == list(range(13))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_a_machine_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    shares = [list(Numbered(rank, 8).share(range(5), one_a_machine=True)) for rank in range(8)]
    assert shares == [[0, 2, 4], [], [], [], [1, 3], [], [], []]
