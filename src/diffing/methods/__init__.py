"""One folder a method; no method imports another."""
