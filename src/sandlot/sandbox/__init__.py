"""Isolated computers. `base` is the contract, `contract` the suite that every backend passes."""
