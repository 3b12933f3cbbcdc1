"""Data sets, splits and batches: from files to tensors."""
