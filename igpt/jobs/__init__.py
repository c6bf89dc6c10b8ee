"""Where a run begins, goes on and ends: pre-training, fine-tuning, the search of the rate."""
