"""The rollout: one loop for users' tasks, benchmarks, served requests and training."""
