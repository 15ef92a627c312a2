"""How wide the widest blocks are: they grow when the held-out ones of their width are accepted whole often enough.

In: the recipe's `batches.curriculum` and held-out acceptance. Out: the width to train at. Slots that no draft reaches
teach little, and widening too early hurts the first slots (DBloom), so a width is trained at until enough of its blocks
are accepted to the last slot. The checkpoint keeps the steps at which blocks grew, so a resumed run is the run.
"""

from pathlib import Path

from configs.console import say
from configs.errors import UserError
from configs.schema import Batches
from pipelines.batches import widest_in_turn
from train.acceptance import Acceptance
from train.checkpoint import read_metadata


class Curriculum:
    """The widths in turn, and how far training is in them; `grown` are the steps at which the blocks grew."""

    def __init__(self, section: Batches):
        self._least = section.curriculum
        self.widths = list(widest_in_turn(section))
        self.grown: list[int] = []

    @property
    def width(self) -> int:
        return self.widths[len(self.grown)]

    def go_on(self, checkpoint: Path) -> None:
        """Begins where a run stands whose last checkpoint this is.

        Raises:
          UserError: it does not say when its blocks grew, and has a curriculum: one by the step, as there was before.
        """
        grown = read_metadata(checkpoint).get("grown")
        if grown is None and self._least:
            raise UserError(
                f"{checkpoint}: its batches.curriculum went by the step, as earlier ones did; expected one that goes "
                "by acceptance: go on with it by the revision that wrote it, or choose another run.dir"
            )
        self.grown = grown or []

    def consider(self, step: int, acceptance: Acceptance) -> None:
        """Grows where the blocks measured after `step` are accepted whole as often as the recipe asks."""
        least = self._least.get(self.width)
        if least is not None and acceptance.whole >= least:
            said = f"{acceptance.whole:.3f} of those of {self.width} are accepted whole"
            self.grown.append(step)
            say(f"train: step {step}: the widest blocks grow to {self.width}: {said}")
