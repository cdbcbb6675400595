"""What a run may cost: tokens and US dollars, held by what the provider says it billed."""

import threading
from typing import TYPE_CHECKING

from embedding_pipelines.errors import BudgetError, ConfigError
from embedding_pipelines.providers.base import ProviderOptions

if TYPE_CHECKING:
    from embedding_pipelines.spec.pipeline import Budget


class BudgetTracker:
    """A budget while it is spent. `ratio` is what the provider bills for a token of ours, as
    learned so far."""

    def __init__(
        self, budget: "Budget | None" = None, usd_per_million_tokens: float | None = None
    ) -> None:
        self._tokens = budget.tokens if budget else None
        self._usd = budget.usd if budget else None
        self.price = usd_per_million_tokens
        self.counted = self.billed = 0  # tokens: by the tokenizer, and on the bill
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls, budget: "Budget | None", options: ProviderOptions, in_batches: bool = False
    ) -> "BudgetTracker":
        """For direct requests, or for batches. Raises ConfigError for a budget in dollars where
        nobody knows the price."""
        price = options.batch_price if in_batches else options.price
        if budget is not None and budget.usd is not None and price is None:
            raise ConfigError(
                f"budget.usd is {budget.usd}, but no price is known for {options.kind} model "
                f"{getattr(options, 'model', '')!r}. State it with usd_per_million_tokens, or give budget.tokens."
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
        """Spent so far; None if the price is not known."""
        return None if self.price is None else self.billed * self.price / 1e6

    def is_empty(self) -> BudgetError:
        spent = f"{self.billed:,} tokens" + ("" if self.usd is None else f", {self.usd:.4f} USD")
        given = [f"{self._usd} USD"] if self._usd is not None else []
        given += [f"{self._tokens:,} tokens"] if self._tokens is not None else []
        return BudgetError(
            f"The budget of this run ({', '.join(given)}) is used up: it has spent {spent}, and the next request "
            "would go beyond. What was paid for is kept; the next run goes on from there with a budget of its own."
        )
