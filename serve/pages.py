"""Who holds which page of the pool, and which pages hold what is known already: the prefix cache.

A page is free, held by one or more rows, or idle: held by none but kept, since its tokens may come again. Idle pages
are given away when no free ones are left, the longest unused first. Full pages alone are kept. One is found by what it
holds and by the page before it, exactly: `known[(before, tokens)]`, `before` being the number the page before it got
when it became known, which no other ever gets. So no two texts are ever taken for one another. Before the first page
stands the salt of whoever asked, and what one salt made known is not found by another.

Invariant, `check`: free + held + idle = all, and a page is held as often as rows have it.
"""

import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

Key = tuple[int | str, tuple[int, ...]]


class PageTable:
    """The pages 0..num-1 of `size` positions each."""

    def __init__(self, num: int, size: int):
        self.num, self.size = num, size
        self._free = list(range(num))[::-1]
        self._held: Counter[int] = Counter()
        self._idle: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._known: dict[Key, int] = {}
        self._names: dict[int, tuple[int, Key]] = {}  # of known pages: their number, and where `_known` has them
        self._numbers = itertools.count()

    @property
    def available(self) -> int:
        """Pages that can be had now."""
        return len(self._free) + len(self._idle)

    def needed(self, positions: int) -> int:
        """Pages that so many positions take."""
        return -(-positions // self.size)

    def take(self, count: int) -> list[int] | None:
        """So many pages, now held; None where there are not as many."""
        if count > self.available:
            return None
        return [self._one() for _ in range(count)]

    def find(self, tokens: Sequence[int], salt: str = "") -> list[int]:
        """The pages known to hold the longest beginning of `tokens` that is any; held from now on."""
        found: list[int] = []
        for key in self._keys(tokens):
            page = self._known.get((self._names[found[-1]][0] if found else salt, key))
            if page is None:
                break
            found.append(page)
        for page in found:
            self._idle.pop(page, None)
            self._held[page] += 1
        return found

    def know(self, pages: Sequence[int], tokens: Sequence[int], since: int, salt: str = "") -> int:
        """Makes known that `pages` hold `tokens`, of which the first `since` pages were said before; how many are now.

        A page whose content another page is known for stays unknown, and so do those after it.
        """
        for index, key in enumerate(self._keys(tokens)):
            if index < since:
                continue
            if index and pages[index - 1] not in self._names:
                return index
            before = self._names[pages[index - 1]][0] if index else salt
            if (before, key) in self._known:
                return index
            self._known[before, key] = pages[index]
            self._names[pages[index]] = next(self._numbers), (before, key)
        return max(since, len(tokens) // self.size)

    def release(self, pages: Sequence[int]) -> list[int]:
        """Gives back what one row held; what of it is known stays. The others, free now."""
        freed = []
        for page in reversed(pages):  # a page is of no use without those before it: the last go first
            self._held[page] -= 1
            if not self._held[page]:
                del self._held[page]
                if page in self._names:
                    self._idle[page] = None
                else:
                    freed.append(page)
        self._free += freed
        return freed

    def check(self, rows: Iterable[Sequence[int]]) -> None:
        """Asserts the invariant, `rows` being the pages of every row."""
        held = Counter(page for pages in rows for page in pages)
        assert held == self._held, f"{held} held, {self._held} noted"
        assert sorted([*self._free, *self._held, *self._idle]) == list(range(self.num))

    def _one(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page = self._idle.popitem(last=False)[0]
            self._forget(page)
        self._held[page] += 1
        return page

    def _forget(self, page: int) -> None:
        if page in self._names:
            del self._known[self._names.pop(page)[1]]

    def _keys(self, tokens: Sequence[int]) -> Iterable[tuple[int, ...]]:
        for begin in range(0, len(tokens) - self.size + 1, self.size):
            yield tuple(tokens[begin : begin + self.size])
