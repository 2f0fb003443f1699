"""Legend of the shape suffixes that tensor names carry.

B  sequences in a batch            T  positions of a sequence (padded)
N  tokens (padding removed)        V  vocabulary
D  width of the residual stream    K  ranked items kept per row
S  sequences of a corpus           R  bootstrap resamples
L  layers                          P  input positions listed in a table
Examples: `ids_BT`, `hidden_ND`, `logits_NV`.
"""
