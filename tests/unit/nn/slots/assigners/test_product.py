import torch

import straightvq as svq


def test_long_codes_win_by_hand() -> None:
    # Products of (1, 0): 1, 2, -3; of (0, -1): 0, -2, 4.
    codes = torch.tensor([[1.0, 0.0], [2.0, 2.0], [-3.0, -4.0]])
    assert svq.LargestProduct()(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), codes).tolist() == [1, 2]


def test_it_is_the_largest_product() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(500, 5, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    assert torch.equal(svq.LargestProduct()(z, codes), (z @ codes.T).argmax(1))


def test_of_equally_long_codes_it_is_the_one_of_the_smallest_angle() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(500, 5), torch.nn.functional.normalize(torch.randn(40, 5), dim=1)
    assert torch.equal(svq.LargestProduct()(z, codes), svq.Nearest("cosine")(z, codes))


def test_a_layer_orders_codes_by_their_products() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(5, svq.Codebook(40), assigner=svq.LargestProduct())
    z = torch.randn(200, 5)
    distances, indices = layer.nearest(z, 3)
    products, order = (z @ layer.codes().T).topk(3)
    assert torch.equal(indices, order)
    longest = layer.codes().norm(dim=1).max()
    torch.testing.assert_close(distances**2, (z.norm(dim=1) ** 2 + longest**2)[:, None] - 2 * products)
