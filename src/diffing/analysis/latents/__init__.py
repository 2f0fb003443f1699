"""What the methods that train dictionaries share: options, training on a pair, and what the latents are."""
