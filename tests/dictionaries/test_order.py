"""Orders and selections that the CPU makes by NumPy: equal to torch's, ties and wide indices included."""

import pytest
import torch

from diffing.dictionaries.products import order_by_latent
from diffing.dictionaries.selection import batch_topk


@pytest.mark.parametrize("n_latents", [50, 60_000, 200_000])
def test_pairs_come_in_the_order_of_their_latents(n_latents):
    latent_P = torch.randint(0, n_latents, (5000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(order_by_latent(latent_P, n_latents), torch.sort(latent_P, stable=True).indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_latents", [50, 9000])
def test_of_equal_scores_the_first_are_kept(dtype, n_latents):
    scores_NF = torch.randn(64, n_latents, generator=torch.Generator().manual_seed(0)).mul(4).round().to(dtype)
    flat, score_P = batch_topk(scores_NF, 640)
    values = scores_NF.flatten()
    larger, equal = (values > score_P.min()).nonzero().squeeze(1), (values == score_P.min()).nonzero().squeeze(1)
    expected = torch.cat([larger, equal[: 640 - len(larger)]]).sort().values
    assert torch.equal(flat, expected)
    assert torch.equal(score_P, values[flat])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_that_are_not_positive_are_never_kept(dtype):
    scores_NF = -torch.rand(64, 9000, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores_NF[:, ::7] = -0.0
    scores_NF[3, 5], scores_NF[9, 8000] = 1e-3, 2.0
    assert batch_topk(scores_NF, 640)[0].tolist() == [3 * 9000 + 5, 9 * 9000 + 8000]
