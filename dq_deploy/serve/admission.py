"""Which picture begins next: requests wait here until the server has a place for another picture of theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dq_deploy.errors import DqError
from dq_deploy.serve.orders import Order, Whose


class QueueFullError(DqError):
    """More pictures wait than the server holds; the client is to come again later."""


@dataclass(kw_only=True, eq=False)
class _Waiting:
    """A request with pictures that have not begun."""

    order: Order
    number: int
    following: int = 0

    @property
    def left(self) -> int:
        return self.order.count - self.following


class Admission:
    """Pictures that wait, and how many of each client are being drawn. Its owner holds a lock around every call.

    The next picture is of the highest priority; of one priority, of the client with the fewest pictures being drawn,
    and of its user with the fewest; of those, of the request whose time is up first; of those, of the request that came
    first.

    `places` pictures are drawn at once. A client none of whose pictures is being drawn, and a request of higher
    priority than all that are drawn, get a place beyond those, up to `most`; and so does a user none of whose pictures
    is being drawn, up to half of the way there. So a client with many pictures holds up nobody else, nor does a user,
    and a client that names many users holds up no other client. Who gets into an engine call is for the scheduler of
    steps.
    """

    def __init__(self, *, places: int, most: int, capacity: int) -> None:
        """Nobody waits.

        Args:
            places: pictures drawn at once.
            most: likewise, with the clients, users and priorities that need not wait for a place.
            capacity: pictures that may wait.
        """
        self.places, self.most, self.capacity = places, most, capacity
        self._waiting: list[_Waiting] = []
        self._drawn: Counter[str] = Counter()
        self._drawn_of_user: Counter[Whose] = Counter()
        self._priorities: Counter[int] = Counter()
        self._numbers = 0

    @property
    def pictures_waiting(self) -> int:
        """Pictures that have not begun."""
        return sum(entry.left for entry in self._waiting)

    @property
    def drawn(self) -> int:
        """Pictures that are being drawn."""
        return self._drawn.total()

    def add(self, order: Order) -> None:
        """Let a request wait.

        Raises:
            QueueFullError: too many pictures wait.
        """
        free = max(self.places - self.drawn, 0)
        if self.pictures_waiting + order.count > self.capacity + free:
            raise QueueFullError(
                f"{self.pictures_waiting} pictures wait and {order.count} were asked for, of at most {self.capacity}; "
                "ask again later"
            )
        self._numbers += 1
        self._waiting.append(_Waiting(order=order, number=self._numbers))

    def next(self) -> tuple[Order, int] | None:
        """The next picture, as its request and its index there; None where nobody waits or no place is free."""
        if self.drawn >= self.most:
            return None
        free = self.drawn < self.places
        entry = next((e for e in self._in_order() if free or self._need_not_wait(e.order)), None)
        if entry is None:
            return None
        order = entry.order
        index = entry.following
        entry.following += 1
        if not entry.left:
            self._waiting.remove(entry)
        self._drawn[order.terms.client] += 1
        self._drawn_of_user[order.terms.whose] += 1
        self._priorities[order.terms.priority] += 1
        return order, index

    def over(self, order: Order) -> None:
        """One of the pictures of a request is not drawn any more."""
        self._drawn -= Counter({order.terms.client: 1})  # drops what is down to 0
        self._drawn_of_user -= Counter({order.terms.whose: 1})
        self._priorities -= Counter({order.terms.priority: 1})

    def remove(self, order: Order) -> None:
        """The pictures of a request that have not begun will not be drawn."""
        self._waiting = [entry for entry in self._waiting if entry.order is not order]

    def positions(self) -> Iterator[tuple[Order, int]]:
        """Requests with pictures that wait, and how many pictures stand before each, as things are now."""
        before = 0
        for entry in self._in_order():
            yield entry.order, before
            before += entry.left

    def _in_order(self) -> list[_Waiting]:
        def place(entry: _Waiting) -> tuple[float, ...]:
            terms = entry.order.terms
            drawn, of_user = self._drawn[terms.client], self._drawn_of_user[terms.whose]
            return -terms.priority, drawn, of_user, entry.order.deadline, entry.number

        return sorted(self._waiting, key=place)

    def _need_not_wait(self, order: Order) -> bool:
        terms = order.terms
        if not self._drawn[terms.client] or terms.priority > max(self._priorities, default=terms.priority):
            return True
        return not self._drawn_of_user[terms.whose] and self.drawn < (self.places + self.most) // 2
