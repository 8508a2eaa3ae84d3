"""Work dealt out to the processes of one stage."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from torch import distributed
from torch.distributed.rendezvous import rendezvous

PATIENCE = timedelta(days=30)  # for the others' shards; a process that dies is noticed at once

T = TypeVar("T")


class Shards:
    """Deals out shards to the processes of this stage, each to one; alone, to this one."""

    rank, num = 0, 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def __iter__(self) -> Iterator[int]:
        """0, 1, … for ever, leaving out what other processes are given."""
        shard = 0
        while True:
            yield shard
            shard += 1

    def meet(self) -> None:
        """Returns when every process is here."""

    def share(self, items: Sequence[T], *, one_a_machine: bool = False) -> Sequence[T]:
        """This process's part of what every process names alike.

        `one_a_machine`: the first process of each machine takes that machine's, the others nothing.
        """
        rank, num = self.rank, self.num
        if one_a_machine:
            here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as torchrun and accelerate set it
            if rank % here:
                return []
            rank, num = rank // here, -(-num // here)
        return items[rank::num]


class SharedShards(Shards):
    """A counter in the launcher's store deals, and a process group of gloo's meets."""

    def __init__(self) -> None:
        # not the group's own store, which is private: a second connection to the same server
        self._store, self.rank, self.num = next(rendezvous("env://", timeout=PATIENCE))
        name = [uuid.uuid4().hex]  # the store may outlive processes that a launcher starts again
        distributed.broadcast_object_list(name)
        self._key, self._rounds = f"oxa.shards/{name[0]}", 0

    def __iter__(self) -> Iterator[int]:
        self._rounds += 1  # every process iterates as often, and each time over all shards anew
        key = f"{self._key}/{self._rounds}"
        while True:
            yield self._store.add(key, 1) - 1

    def meet(self) -> None:
        distributed.barrier()


@contextmanager
def together() -> Iterator[Shards]:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # as torchrun and accelerate set it
        yield Shards()
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    yield SharedShards()
    # not after an error: the others would lose the connection and end first, and the launcher would show their fault
    distributed.destroy_process_group()
