"""The report of a pair: what all methods together found, how sure that is, and where it comes from."""
