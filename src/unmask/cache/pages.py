"""Which pages of the paged K/V cache belong to whom. Host accounting only: no tensors, nothing waits for the device.

A page is free, cached (nobody holds it, but its content has a name and may be used again) or leased (held by one or
more leases). Page 0 is spare: it takes the writes of tokens that are not stored, and is never given out.

A page with a name may be shared by later leases, which read it and never write it. The device runs what the host
launches in order, so a page may be given to the next lease as soon as the last launched work of the previous one is.

Not thread-safe: one thread owns a pool.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from unmask.errors import UnmaskError


def prefix_keys(tokens: Sequence[int], page_size: int, salt: str, grain: int = 1) -> tuple[bytes, ...]:
    """Names of what the leading pages hold after `tokens` have been run: equal names mean equal keys and values.

    A name is a 256-bit digest of every token that the page's tokens can see, so it stands for the whole prefix, and the
    page's number.

    Args:
        tokens: those whose keys may be shared; leave out what must be run again for its logits (autoregressive
            decoding: the last prompt token).
        page_size: tokens a page.
        salt: whatever else keys depend on (checkpoint, adapter, dtype).
        grain: a token sees its whole block of `grain` tokens (1: causal); 0: all of `tokens` (a bidirectional prompt).

    Returns:
        One name a page: pages that lie wholly inside the tokens, as do their last blocks; with grain 0 all pages, the
        last of which may be filled in part.
    """
    digest = blake2b(f"{grain}:{salt}".encode(), digest_size=32).digest()
    running = blake2b(digest, digest_size=32)
    data, width = memoryview(array("q", tokens)).cast("B"), array("q").itemsize
    keys: list[bytes] = []
    done = 0
    for page in range(-(-len(tokens) // page_size)):
        end = (page + 1) * page_size
        seen = -(-end // grain) * grain if grain else len(tokens)
        if seen > len(tokens):
            break
        running.update(data[done * width : seen * width])
        done = seen
        keys.append(running.digest() + page.to_bytes(4, "little"))
    return tuple(keys)


@dataclass(slots=True, eq=False)
class Lease:
    """Pages held by one request, in the order of its slots.

    Attributes:
        pages: page numbers; slot s lies in pages[s // page_size].
        shared: the first so many are held with others: read them, never write them.
        source: the page whose content is to be copied to pages[shared] before anything else is written there, None for
            no copy. Held as well, until `PagePool.copied`.
    """

    pages: tuple[int, ...]
    shared: int = 0
    source: int | None = None


class PagePool:
    """Free, cached and leased pages. Every page but 0 is in exactly one of these states.

    Args:
        pages: pages of the cache, page 0 included.
        page_size: slots a page.
    """

    def __init__(self, pages: int, page_size: int) -> None:
        if pages < 2 or page_size < 1:
            raise UnmaskError(f"a cache of {pages} pages of {page_size} slots; at least 2 pages of 1 slot are needed")
        self.pages, self.page_size = pages, page_size
        self._free = list(range(pages - 1, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._count = [0] * pages  # holders of each page
        self._key: list[Hashable | None] = [None] * pages
        self._page: dict[Hashable, int] = {}
        self._leases: set[Lease] = set()

    @property
    def capacity(self) -> int:
        """Pages that can be given out at all."""
        return self.pages - 1

    @property
    def free_pages(self) -> int:
        """Pages without content."""
        return len(self._free)

    @property
    def cached_pages(self) -> int:
        """Pages that nobody holds and whose content has a name: evicted when space is needed."""
        return len(self._cached)

    @property
    def used_pages(self) -> int:
        """Pages held by at least one lease."""
        return self.capacity - len(self._free) - len(self._cached)

    def pages_for(self, slots: int) -> int:
        """How many pages so many slots take."""
        return -(-slots // self.page_size)

    def hits(self, keys: Sequence[Hashable]) -> int:
        """How many of the leading keys name a page that is here."""
        for place, key in enumerate(keys):
            if key not in self._page:
                return place
        return len(keys)

    def take(self, count: int, prefix: Sequence[Hashable] = (), *, copy_last: bool = False) -> Lease | None:
        """Leases `count` pages, the leading ones shared where their content is here already.

        Args:
            prefix: names of the content wanted in the leading pages; used up to the first one that is not here. At
                most `count`.
            copy_last: the last page found is to be copied, not shared, since the row writes to it.

        Returns:
            None if there are not enough free and cached pages; nothing has changed then.
        """
        if len(prefix) > count:
            raise ValueError(f"{len(prefix)} named pages do not fit in a lease of {count}")
        room = len(self._free) + len(self._cached)
        if count - len(prefix) > room:  # not even if all of the prefix is here: spares the look-up
            return None
        held = [self._page[key] for key in prefix[: self.hits(prefix)]]
        shared = len(held) - (copy_last and bool(held))
        if count - shared > room - sum(self._count[page] == 0 for page in held):
            return None
        for page in held:  # before anything is evicted
            self._hold(page)
        fresh = [self._fresh() for _ in range(count - shared)]
        lease = Lease((*held[:shared], *fresh), shared, held[shared] if shared < len(held) else None)
        self._leases.add(lease)
        return lease

    def copied(self, lease: Lease) -> None:
        """The copy from `lease.source`, if there was to be one, is launched: the source is no longer held."""
        self._need(lease)
        if lease.source is not None:
            self._drop(lease.source)
            lease.source = None

    def register(self, lease: Lease, keys: Sequence[Hashable]) -> None:
        """Names the content of the lease's leading pages, so that later leases may share them.

        Call it once the work that writes them is launched. Slots that a name speaks of must not be written after that.
        Pages that have a name keep it; content that another page holds already is not named twice.
        """
        self._need(lease)
        if len(keys) > len(lease.pages):
            raise ValueError(f"{len(keys)} names for a lease of {len(lease.pages)} pages")
        for page, key in zip(lease.pages, keys):
            if self._key[page] is None and key not in self._page:
                self._key[page], self._page[key] = key, page

    def free(self, lease: Lease, *, forget: bool = False) -> None:
        """Gives a lease back; pages with a name stay cached until they are evicted, least recently used first.

        Args:
            forget: the content is not to be trusted: nobody may find these pages any more.

        Raises:
            ValueError: the lease is not held (freed twice, or of another pool).
        """
        self.copied(lease)
        self._leases.remove(lease)
        for page in reversed(lease.pages):  # the end of a prefix is of no use without its beginning: evicted first
            if forget:
                self._forget(page)
            self._drop(page)

    def check(self) -> None:
        """Asserts that the accounts are consistent; for tests, in time linear in all pages and leases."""
        count, writers = [0] * self.pages, [0] * self.pages
        for lease in self._leases:
            for place, page in enumerate(lease.pages):
                count[page] += 1
                writers[page] += place >= lease.shared
            if lease.source is not None:
                count[lease.source] += 1
        assert count == self._count, "the number of holders of a page is wrong"
        assert max(writers) <= 1, "two leases may write one page"
        leased = [page for page, holders in enumerate(count) if holders]
        assert sorted([*self._free, *self._cached, *leased]) == list(range(1, self.pages)), "a page is lost or doubled"
        named = {key: page for page, key in enumerate(self._key) if key is not None}
        assert named == self._page and len(named) == sum(key is not None for key in self._key), "names are not unique"
        assert all(self._key[page] is None for page in self._free), "a free page has a name"
        assert all(self._key[page] is not None for page in self._cached), "a cached page has no name"

    def _need(self, lease: Lease) -> None:
        if lease not in self._leases:
            raise ValueError("this lease is not held: freed before, or of another pool")

    def _hold(self, page: int) -> None:
        if self._count[page] == 0:
            del self._cached[page]
        self._count[page] += 1

    def _drop(self, page: int) -> None:
        self._count[page] -= 1
        if self._count[page]:
            return
        if self._key[page] is None:
            self._free.append(page)
        else:
            self._cached[page] = None

    def _fresh(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page = self._cached.popitem(last=False)[0]
            self._forget(page)
        self._count[page] = 1
        return page

    def _forget(self, page: int) -> None:
        key = self._key[page]
        if key is not None:
            del self._page[key]
            self._key[page] = None
