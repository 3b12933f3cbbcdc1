"""The run folder: checkpoints, metrics, locks, and going on from them."""
