"""What `--recipe fast` adds to the training loop beside its rates: kept directions, rests, averaged weights."""
