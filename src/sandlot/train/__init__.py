"""Training on rollouts: the only part that imports torch, and only inside its own modules."""
