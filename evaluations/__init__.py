"""What the evaluations share: the network under test, attacks over whole test sets, sanity checks, results."""
