"""What an answer is worth: scorers that read every arm alike."""
