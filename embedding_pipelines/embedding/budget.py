"""What embedding takes, counted, and what a run may spend: tokens and US dollars."""

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedding_pipelines.errors import BudgetError, ConfigError
from embedding_pipelines.providers.base import ProviderOptions

if TYPE_CHECKING:
    from embedding_pipelines.spec.pipeline import Budget


@dataclass
class Usage:
    """What embedding took. Requests add to it while they are made, so it is right however they
    end."""

    texts: int = 0  # each text of a batch once, however often it occurs
    cache_hits: int = 0
    embedded: int = 0
    embedded_tokens: int = 0  # by the model's tokenizer
    embedded_images: int = 0  # of `embedded`
    rejected: int = 0
    requests: int = 0  # that were answered with vectors
    retries: int = 0  # requests that were sent in vain
    counted_tokens: int = 0  # of all replies, those in vain included, by the model's tokenizer
    billed_tokens: int = 0  # of the same replies, as the provider says; as counted if it does not
    provider_seconds: float = 0.0  # during which at least one request was out
    request_seconds: float = 0.0  # from sending to reply, summed over requests
    wait_seconds: float = 0.0  # for the rate limit, and before a request was sent again

    def add(self, other: "Usage") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class BudgetTracker:
    """A budget while it is spent. What a text will cost is reckoned from what the provider has
    billed so far for each token that was counted."""

    def __init__(
        self, budget: "Budget | None" = None, usd_per_million_tokens: float | None = None
    ) -> None:
        self._tokens = budget.tokens if budget else None
        self._usd = budget.usd if budget else None
        self.price = usd_per_million_tokens
        self.counted = self.billed = 0  # tokens
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls, budget: "Budget | None", options: ProviderOptions, batch_jobs: bool = False
    ) -> "BudgetTracker":
        """For direct requests, or for batch jobs. Raises ConfigError for a budget in dollars if the
        price is unknown."""
        price = options.batch_price if batch_jobs else options.price
        if budget is not None and budget.usd is not None and price is None:
            raise ConfigError(
                f"budget.usd is {budget.usd}, but no price is known for {options.kind} model "
                f"{getattr(options, 'model', '')!r}. State it with usd_per_million_tokens, or give "
                "budget.tokens."
            )
        return cls(budget, price)

    @property
    def limit(self) -> float:
        """Tokens that may be billed."""
        limits = [float(self._tokens)] if self._tokens is not None else []
        if self._usd is not None and self.price:
            limits.append(self._usd / self.price * 1e6)
        return min(limits, default=float("inf"))

    def holds(self, tokens: int) -> bool:
        """Whether texts of so many tokens more can be paid for."""
        with self._lock:
            ratio = max(1.0, self.billed / self.counted) if self.counted else 1.0
            return self.billed + tokens * ratio <= self.limit

    def spend(self, counted: int, billed: int) -> None:
        with self._lock:
            self.counted += counted
            self.billed += billed

    @property
    def usd(self) -> float | None:
        """Spent so far; None if the price is unknown."""
        return None if self.price is None else self.billed * self.price / 1e6

    def exhausted_error(self) -> BudgetError:
        spent = f"{self.billed:,} tokens" + ("" if self.usd is None else f", {self.usd:.4f} USD")
        budget = [f"{self._usd} USD"] if self._usd is not None else []
        budget += [f"{self._tokens:,} tokens"] if self._tokens is not None else []
        return BudgetError(
            f"The budget of this run ({', '.join(budget)}) is exhausted: it has spent {spent}, and "
            "the next request would go beyond. What was paid for is kept; the next run goes on "
            "from there with a budget of its own."
        )
