"""The two networks, target and drafter, and what they need to be run: weights, tokenizer, caches, plain decoding."""
