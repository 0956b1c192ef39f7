"""Who has used how much: the fair shares of users. [pure]

Usage is slots times seconds, and halves every `half_life_s`. It grows while tasks are on hosts, not only when they
end, so that long tasks count from the beginning. Users are compared by usage divided by weight: who is behind comes
first.

Usage is kept in units that grow with time (twice as large a half-life later) instead of being made smaller again and
again: so the order of users changes only where one has used something. All arithmetic is that of IEEE 754 doubles,
exactly defined, because every master must get the same bits: the growth is linear between two halvings.
"""

from __future__ import annotations

from math import floor, ldexp

from msgspec import Struct

#: Half-lives after which the units begin anew, long before numbers could get too large.
_REBASE = 400
HALF_LIFE_S = 86_400.0
DEFAULT_WEIGHT = 1.0
#: Usage of so many slot seconds is not remembered when the last job of a user is forgotten.
NOTHING_S = 1.0


class Account:
    """One user. `usage` is in units of the shares' beginning; `slots` and `tasks` are what is on hosts now."""

    __slots__ = ("accrued_at", "name", "number", "slots", "tasks", "usage", "weight")

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number  #: users in the order in which they came: decides between equals
        self.weight = DEFAULT_WEIGHT
        self.usage = 0.0
        self.accrued_at = 0.0  #: until when its tasks are in `usage`
        self.slots: float = 0
        self.tasks = 0

    @property
    def key(self) -> float:
        """Returns the place among users: the smallest comes first. Without what has accrued since."""
        return self.usage / self.weight


class AccountImage(Struct, array_like=True, gc=False):
    """A user in a snapshot."""

    name: str
    weight: float
    usage: float
    accrued_at: float


class Shares:
    """All users."""

    def __init__(self) -> None:
        self.half_life_s = HALF_LIFE_S
        self.base_at = 0.0  #: when a unit of usage was a slot second
        self.accounts: dict[str, Account] = {}
        self.next_number = 1
        self.rebased = False  #: all keys are others now; whoever keeps an order of them makes it anew

    def account(self, name: str) -> Account:
        """Returns the account of a user; a new one if there is none yet."""
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = Account(name, self.next_number)
            self.next_number += 1
        return account

    def forget(self, name: str) -> None:
        """Drops the newest account again: it was only tried."""
        account = self.accounts.pop(name, None)
        if account is not None:
            self.next_number = account.number

    def trim(self, name: str, at: float) -> None:
        """Drops an account that says nothing any more; a user who comes back gets a new one."""
        account = self.accounts.get(name)
        if account is None or account.tasks or account.weight != DEFAULT_WEIGHT:
            return
        if self.usage_at(account, at) < NOTHING_S:
            del self.accounts[name]

    def factor(self, at: float) -> float:
        """Returns how many units a slot second of that time is."""
        halves = (at - self.base_at) / self.half_life_s
        whole = floor(halves)
        return ldexp(1.0 + (halves - whole), max(-1000, min(1000, whole)))

    def accrue(self, account: Account, at: float) -> None:
        """Takes into the usage what its tasks have used until now."""
        passed_s = at - account.accrued_at
        if account.slots and passed_s > 0:
            if (at - self.base_at) > _REBASE * self.half_life_s:
                self.rebase(at)
            account.usage += account.slots * passed_s * self.factor(at)
        account.accrued_at = max(account.accrued_at, at)

    def key_at(self, account: Account, at: float) -> float:
        """Returns the account's key with what its tasks have used until `at`."""
        passed_s = at - account.accrued_at
        if not account.slots or passed_s <= 0:
            return account.key
        return (account.usage + account.slots * passed_s * self.factor(at)) / account.weight

    def usage_at(self, account: Account, at: float) -> float:
        """Returns the usage in slot seconds, what is longer ago counting less."""
        return self.key_at(account, at) * account.weight / self.factor(at)

    def rebase(self, at: float, half_life_s: float | None = None) -> None:
        """Begins the units anew at a time, with another half-life if one is given.

        Never at an earlier one: a clock that was ahead and is right again would make all usage as large as can be.
        """
        at = max(at, self.base_at)
        factor = self.factor(at)
        for account in self.accounts.values():
            account.usage /= factor
        self.base_at = at
        self.half_life_s = half_life_s or self.half_life_s
        self.rebased = True

    def images(self) -> list[AccountImage]:
        """Returns the users as they are stored."""
        return [AccountImage(each.name, each.weight, each.usage, each.accrued_at) for each in self.accounts.values()]

    def restore(self, images: list[AccountImage]) -> None:
        """Takes users over from a snapshot, what is on hosts left out."""
        for image in images:
            account = self.account(image.name)
            account.weight, account.usage, account.accrued_at = image.weight, image.usage, image.accrued_at
