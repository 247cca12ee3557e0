"""What the computer buys: paired arms over the same items, their scores and their comparison."""
