"""Sample domains for the demo and the tests: small shops with readable titles, and shoppers who follow rules.

A title is brand, product and variant: a price tier ("Luna Toner Prime"), a number ("Luna Retinol 2") or what goes with the
product ("Luna Toner Refill"). Brands and products differ from shop to shop; the words for tiers, refills and kits are the
same everywhere. Every purchase has one of four reasons, kept in the history's field `rules`.

General rules, the same in every shop, which a base spirit can learn anywhere:

- `follow_up`: what goes with one of the last three purchases, of the same brand and product: a Refill for what is used up, a
  Kit for what lasts.
- `loyal`: another product of the brand and price tier of the last product that has a tier.

The rule of a single shop, which only its ingredient can learn:

- `order`: the next product of a routine (cleanser, toner, serum, …) or the next number of a series (Retinol 1, Retinol 2, …),
  of any brand. No word of a title shows what comes next in a routine, and the word "Retinol" fits the wrong numbers as well.

And `whim`: anything at all. The first purchase, `opening`, is of a shopper's taste in brand and tier or, in a young shop, a
place to start the shop's order from.

Mature shops show all rules at all times, mostly the general ones. In the young shop everybody has only begun: purchases follow
the shop's order, and the general ones, which take time, first show in the two latest purchases, which are the validation and the
test target. So the young shop's training rows teach an ingredient nothing about follow-ups and loyalty, no mature shop teaches a
spirit what comes after a toner, and the validation rows show how much of both the shop needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .data import DomainData, History, Item
from .errors import TaskError

TIERS = ("Basic", "Plus", "Prime")
FIRST_DAY, DAY = 1_704_067_200, 86_400  # of 2024, in seconds
RECENT = 3  # how many purchases back a follow-up reaches
LATEST = 2  # purchases of a history that follow a shop's latest mix: the validation target and the test target

Mix = Mapping[str, float]  # how often a purchase has which reason
MATURE: Mix = {"follow_up": 0.50, "loyal": 0.35, "order": 0.10, "whim": 0.05}
YOUNG: Mix = {"order": 0.90, "whim": 0.10}
YOUNG_LATEST: Mix = {"follow_up": 0.37, "loyal": 0.15, "order": 0.43, "whim": 0.05}


@dataclass(frozen=True, slots=True)
class Product:
    """One thing in a catalogue."""

    brand: str
    name: str
    variant: str

    @property
    def title(self) -> str:
        return f"{self.brand} {self.name} {self.variant}"

    @property
    def item_id(self) -> str:
        return self.title.lower().replace(" ", "-")

    @property
    def step(self) -> str:
        """What it is in an order, of any brand: "Toner" at any price, "Retinol 2"."""
        return self.name if self.variant in TIERS else f"{self.name} {self.variant}"


@dataclass(frozen=True, slots=True)
class Order:
    """Steps that are taken one after the other: a ring starts anywhere and goes round, a series starts early and ends."""

    steps: tuple[str, ...]
    ring: bool = True

    @property
    def starts(self) -> tuple[str, ...]:
        return self.steps if self.ring else self.steps[:2]

    @property
    def successors(self) -> dict[str, str]:
        following = self.steps[1:] + (self.steps[:1] if self.ring else ())
        return dict(zip(self.steps, following, strict=False))


@dataclass(frozen=True)
class SampleDomain:
    """A shop. `used_up` and `lasting` name its products by what follows them: a Refill or a Kit."""

    name: str
    title: str
    mature: bool
    brands: tuple[str, ...]
    used_up: tuple[str, ...]
    lasting: tuple[str, ...]
    orders: tuple[Order, ...]
    users: int
    lengths: tuple[int, int]  # fewest and most purchases of a user
    earlier: Mix
    latest: Mix  # for a user's last purchase

    @cached_property
    def successors(self) -> dict[str, str]:
        return {step: after for order in self.orders for step, after in order.successors.items()}

    @cached_property
    def catalogue(self) -> tuple[Product, ...]:
        """Every brand makes every product, each in one tier or, if it is a series, in all of its numbers."""
        steps = [step for order in self.orders for step in order.steps]
        found: list[Product] = []
        for b, brand in enumerate(self.brands):
            for p, name in enumerate(self.used_up + self.lasting):
                numbers = [step.removeprefix(f"{name} ") for step in steps if step.startswith(f"{name} ")]
                variants = numbers or [TIERS[(b + p) % len(TIERS)]]
                follow_up = "Refill" if name in self.used_up else "Kit"
                found += [Product(brand, name, variant) for variant in (*variants, follow_up)]
        return tuple(found)

    def opening(self, rng: random.Random) -> list[Product]:
        """What a new shopper may start with: something to their taste or, in a young shop, at the start of an order."""
        if self.mature:
            taste = rng.choice(self.brands), rng.choice(TIERS)
            return [product for product in self.catalogue if (product.brand, product.variant) == taste]
        start = rng.choice([step for order in self.orders for step in order.starts])
        return [product for product in self.catalogue if product.step == start]

    def follow_ups(self, taken: Sequence[Product]) -> list[Product]:
        recent = {(product.brand, product.name) for product in taken[-RECENT:]}
        return [p for p in self.catalogue if p.variant in ("Refill", "Kit") and (p.brand, p.name) in recent]

    def loyal(self, taken: Sequence[Product]) -> list[Product]:
        """Leaves out the next step of the order, so that no purchase has two reasons."""
        last = next((product for product in reversed(taken) if product.variant in TIERS), None)
        if last is None:
            return []
        due = self.successors.get(last.step)
        return [p for p in self.catalogue if (p.brand, p.variant) == (last.brand, last.variant) and p.step != due]

    def next_in_order(self, taken: Sequence[Product]) -> list[Product]:
        """Continues from the last purchase that belongs to an order; after the end of a series there is none."""
        places = [product.step for product in taken if any(product.step in order.steps for order in self.orders)]
        due = self.successors.get(places[-1]) if places else None
        return [product for product in self.catalogue if product.step == due]

    def whims(self, taken: Sequence[Product]) -> list[Product]:
        return list(self.catalogue)


SAMPLE_DOMAINS: tuple[SampleDomain, ...] = (
    SampleDomain(
        name="pet-supplies",
        title="Pet Supplies",
        mature=True,
        brands=("Robin", "Falcon", "Raven", "Hawk", "Willow", "Maple", "Eagle", "River"),
        used_up=("Litter", "Treats", "Chews", "Shampoo"),
        lasting=("Crate", "Bowl", "Collar", "Leash"),
        orders=(Order(("Crate", "Bowl", "Collar", "Leash")),),
        users=300,
        lengths=(6, 9),
        earlier=MATURE,
        latest=MATURE,
    ),
    SampleDomain(
        name="kitchen",
        title="Kitchen",
        mature=True,
        brands=("Copper", "Silver", "Olive", "Basil", "Sage", "Pearl", "Harbor", "Ruby"),
        used_up=("Coffee", "Spice", "Soap", "Foil"),
        lasting=("Kettle", "Grinder", "Blender", "Knife"),
        orders=(Order(("Grinder", "Kettle", "Blender", "Knife")),),
        users=300,
        lengths=(6, 9),
        earlier=MATURE,
        latest=MATURE,
    ),
    SampleDomain(
        name="garden",
        title="Garden",
        mature=True,
        brands=("Fern", "Ivy", "Cedar", "Flint", "Terra", "Canyon", "Prairie", "Summit"),
        used_up=("Soil", "Seeds", "Mulch", "Spray"),
        lasting=("Hose", "Shears", "Rake", "Lamp"),
        orders=(Order(("Rake", "Seeds", "Hose", "Shears")),),
        users=300,
        lengths=(6, 9),
        earlier=MATURE,
        latest=MATURE,
    ),
    SampleDomain(
        name="skin-care",
        title="Skin Care",
        mature=False,
        brands=("Luna", "Nova", "Aurora", "Iris", "Coral", "Orion"),
        used_up=("Cleanser", "Toner", "Cream", "Retinol", "Mask"),
        lasting=("Roller", "Mirror"),
        orders=(
            Order(("Cleanser", "Toner", "Cream")),
            Order(tuple(f"Retinol {number}" for number in range(1, 7)), ring=False),
            Order(tuple(f"Mask {number}" for number in range(1, 7)), ring=False),
        ),
        users=440,
        lengths=(4, 6),
        earlier=YOUNG,
        latest=YOUNG_LATEST,
    ),
)

RULES: Mapping[str, Callable[[SampleDomain, Sequence[Product]], list[Product]]] = {
    "follow_up": SampleDomain.follow_ups,
    "loyal": SampleDomain.loyal,
    "order": SampleDomain.next_in_order,
    "whim": SampleDomain.whims,
}


def generate(domain_name: str, *, users: int | None = None, seed: int = 42) -> DomainData:
    """The sample domain's data; equal arguments give an equal digest. A user's history does not depend on `users`."""
    domain = next((domain for domain in SAMPLE_DOMAINS if domain.name == domain_name), None)
    if domain is None:
        names = ", ".join(domain.name for domain in SAMPLE_DOMAINS)
        raise TaskError(f"no sample domain is called {domain_name!r}", hint=f"sample domains: {names}")
    items = [
        Item(p.item_id, p.title, {"brand": p.brand, "product": p.name, "variant": p.variant}) for p in domain.catalogue
    ]
    shoppers = (f"{domain.name}-{number:04d}" for number in range(domain.users if users is None else users))
    return DomainData.of(domain.name, items, (_history(domain, shopper, seed) for shopper in shoppers))


def _history(domain: SampleDomain, user_id: str, seed: int) -> History:
    rng = random.Random(f"{seed}/{user_id}")  # noqa: S311
    length = rng.randint(*domain.lengths)
    taken, rules = [rng.choice(domain.opening(rng))], ["opening"]
    while len(taken) < length:
        mix = domain.latest if len(taken) >= length - LATEST else domain.earlier
        options = {rule: _not_in(taken, RULES[rule](domain, taken)) for rule in mix}
        possible = [rule for rule in mix if options[rule]]
        rules += rng.choices(possible, [mix[rule] for rule in possible])
        taken.append(rng.choice(options[rules[-1]]))
    fields = {"rules": rules, "timestamps": _times(user_id, seed, length)}
    return History(user_id, tuple(product.item_id for product in taken), fields)


def _times(user_id: str, seed: int, count: int) -> list[int]:
    """Seconds since 1970, one to sixty days apart. They have a generator of their own: the purchases do not depend on them."""
    rng = random.Random(f"{seed}/{user_id}/times")  # noqa: S311
    times = [FIRST_DAY + rng.randrange(200 * DAY)]
    while len(times) < count:
        times.append(times[-1] + rng.randrange(DAY, 60 * DAY))
    return times


def _not_in(taken: Sequence[Product], options: Iterable[Product]) -> list[Product]:
    return [product for product in options if product not in taken]
