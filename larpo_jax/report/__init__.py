"""What a sweep found: which arm is better, by how much, with what certainty, in pictures."""
