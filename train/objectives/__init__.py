"""What a kind of drafter is trained for: one module a kind, named after it, with what `Objective` asks for."""

import importlib
from typing import Any, Protocol, cast, runtime_checkable

from configs.schema import Recipe


@runtime_checkable
class Objective(Protocol):
    """The functions of a kind's module. A trainee is an nnx.Module that holds the drafter under `drafter`, what it
    borrows of the target, frozen, and its `width` and `mesh`."""

    def drafter_config(self, recipe: Recipe, target: Any, tokenizer: Any) -> Any:
        """The drafter a recipe describes."""
        ...

    def make_trainee(self, recipe: Recipe, config: Any, target: Any, draft_vocab: Any) -> Any:
        """The drafter at step 0, with what it borrows."""
        ...

    def loss_of(self, recipe: Recipe) -> Any:
        """(trainee, batch of `pipelines.batches`) -> (loss, scalars with "loss")."""
        ...

    def read_rows(self, trainee: Any, batch: Any) -> Any:
        """What the drafter reads of a batch's rows, whatever the anchors."""
        ...

    def leading_hits(self, trainee: Any, batch: Any, context: Any, anchors: Any, *, width: int, head_chunk: int) -> Any:
        """How many drafts of a block of `width` W at each anchor [B, A] are the response's own, from the first on, and
        the chance [B, A, W-1] that the drafter gives the likeliest token of each slot."""
        ...


def objective_of(kind: str) -> Objective:
    """The objective of a recipe's `drafter.kind`."""
    return cast(Objective, importlib.import_module(f"train.objectives.{kind}"))
