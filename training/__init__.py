"""What the training loop keeps from step to step beside the network: directions, averaged weights, running sums."""
