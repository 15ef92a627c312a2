"""Training a drafter: loss, trainer, checkpoints, held-out acceptance, export."""
