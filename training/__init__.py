"""What the training loop keeps from step to step beside the network; MMA for other loops."""
