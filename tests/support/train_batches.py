"""One batch of training, by itself."""

from loading.batches import Augment, Batch, Split, TrainBatches


def train_batch(
    split: Split, step: int, *, batch_size: int, seed: int, augment: Augment | None, rank: int = 0, ranks: int = 1
) -> Batch:
    """One batch of `TrainBatches`."""
    with TrainBatches(split, batch_size=batch_size, seed=seed, augment=augment, rank=rank, ranks=ranks) as batches:
        return batches(step)
