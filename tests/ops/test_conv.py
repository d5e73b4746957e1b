"""`mrlib.ops.conv`: the direct and the Fourier method are convolutions, and the sizes decide which is used."""

import pytest
import torch

from mrlib.ops import conv

SHAPES = [(5, 7, 3, 3), (13, 9, 5, 3), (1, 1, 5, 5), (2, 3, 7, 7), (23, 40, 3, 5), (30, 31, 7, 7)]  # H, W, C, C'


def by_definition(x, weight):
    """y[o, r, s] = sum over i, k, l of w[o, i, k, l] x[i, r + k - C//2, s + l - C'//2], nothing outside."""
    (B, _, H, W), (outputs, _, high, wide) = x.shape, weight.shape
    y = x.new_zeros(B, outputs, H, W)
    for r in range(H):
        for s in range(W):
            for k in range(high):
                for m in range(wide):
                    i, j = r + k - high // 2, s + m - wide // 2
                    if 0 <= i < H and 0 <= j < W:
                        y[:, :, r, s] += x[:, :, i, j] @ weight[:, :, k, m].T
    return y


@pytest.fixture(params=["one tile", "many tiles"])
def tiling(request, monkeypatch):
    """Transform a side in one piece or, by a smaller limit, in tiles."""
    if request.param == "many tiles":
        monkeypatch.setattr(conv, "_ONE_TILE", 8)
        monkeypatch.setattr(conv, "_GRIDS", (16,))


@pytest.mark.parametrize("method", [conv.direct, conv.fourier])
def test_both_methods_equal_the_definition_of_convolution(method):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, 5, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(method(x, weight), by_definition(x, weight))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fourier_method_has_the_values_and_gradients_of_the_direct_one(shape, tiling):
    H, W, high, wide = shape
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, H, W, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, high, wide, generator=generator, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 4, H, W, generator=generator, dtype=torch.float64)
    direct, fourier = conv.direct(x, weight), conv.fourier(x, weight)
    torch.testing.assert_close(fourier, direct)
    torch.testing.assert_close(
        torch.autograd.grad(fourier, (x, weight), dy), torch.autograd.grad(direct, (x, weight), dy)
    )


def test_large_maps_are_cut_into_tiles_and_are_exact():
    x, weight = torch.randn(1, 1, 171, 230, dtype=torch.float64), torch.randn(1, 1, 21, 21, dtype=torch.float64)
    assert min(axis.count for axis in conv._tiles(x.shape, weight.shape)[1:]) > 1
    torch.testing.assert_close(conv.fourier(x, weight), conv.direct(x, weight))


def test_gradients_equal_finite_differences(tiling):
    x = torch.randn(2, 2, 9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(conv.fourier, (x, weight))


def test_only_required_gradients_are_computed():
    x, weight = torch.randn(2, 3, 12, 12), torch.randn(4, 3, 5, 5)
    both = [t.clone().requires_grad_() for t in (x, weight)]
    dx, dweight = torch.autograd.grad(conv.fourier(*both).square().sum(), both)
    only_x, only_weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = conv.fourier(only_x, weight)
    assert sum(s is not None for s in y.grad_fn.saved_tensors) == 1
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), only_x)[0], dx)
    y = conv.fourier(x, only_weight)
    assert sum(s is not None for s in y.grad_fn.saved_tensors) == 1
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), only_weight)[0], dweight)


def test_float32_at_the_size_of_the_similarity_map_is_within_1e_4():
    """Kernel 21 on 75 clips [F2SGD Eq. 13], values and both gradients against float64."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 75, 75, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4, 21, 21, generator=generator, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 4, 75, 75, generator=generator, dtype=torch.float64)
    x32, weight32 = (t.detach().float().requires_grad_() for t in (x, weight))
    exact, ours = conv.direct(x, weight), conv.fourier(x32, weight32)
    pairs = [
        (ours, exact),
        *zip(
            torch.autograd.grad(ours, (x32, weight32), dy.float()),
            torch.autograd.grad(exact, (x, weight), dy),
            strict=True,
        ),
    ]
    for value, expected in pairs:
        assert (value - expected).abs().max() < 1e-4 * expected.abs().max()


def test_equal_calls_give_equal_bytes():
    x, weight = torch.randn(4, 8, 32, 32), torch.randn(8, 8, 9, 9, requires_grad=True)
    runs = []
    for _ in range(3):
        y = conv.conv2d(x, weight)
        runs.append((y, torch.autograd.grad(y.square().sum(), weight)[0]))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_the_fourier_method_is_used_for_large_kernels_on_large_maps():
    assert conv.fourier_is_faster((32, 32, 75, 75), (32, 32, 21, 21))
    assert conv.fourier_is_faster((32, 8, 32, 32), (8, 8, 9, 9))
    assert not conv.fourier_is_faster((32, 32, 75, 75), (32, 32, 3, 3))
    assert not conv.fourier_is_faster((32, 32, 75, 75), (32, 32, 5, 5))
    assert not conv.fourier_is_faster((32, 8, 32, 32), (8, 8, 5, 5))
    assert not conv.fourier_is_faster((32, 8, 8, 8), (8, 8, 9, 9))


def test_the_kernels_of_many_channels_are_transformed_on_small_grids():
    """32 channels take a map of 75 x 75 in one piece, 256 channels in 16 tiles, and an hour of clips takes many."""
    assert [axis.count for axis in conv._tiles((32, 32, 75, 75), (32, 32, 21, 21))[1:]] == [1, 1]
    assert [axis.count for axis in conv._tiles((8, 256, 91, 91), (256, 256, 9, 9))[1:]] == [4, 4]
    assert min(axis.count for axis in conv._tiles((1, 8, 1800, 1800), (8, 8, 21, 21))[1:]) > 10


def test_a_grid_has_the_next_even_number_of_points_whose_prime_factors_are_2_3_and_5():
    fast = sorted(2**a * 3**b * 5**c for a in range(1, 10) for b in range(6) for c in range(4))
    for least in range(1, 400):
        assert conv.fast_size(least) == min(size for size in fast if size >= least)


@pytest.mark.parametrize("kernel", [3, 15])
def test_the_layer_is_a_same_convolution_with_bias(kernel):
    layer = conv.LargeKernelConv2d(2, 3, kernel)
    torchs = torch.nn.Conv2d(2, 3, kernel, padding="same")
    torch.nn.init.normal_(layer.bias)
    torchs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 20, 24)
    torch.testing.assert_close(layer(x), torchs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 15])
def test_autocast_and_half_precision_inputs_are_computed_in_float32(kernel):
    layer, x = conv.LargeKernelConv2d(2, 3, kernel), torch.randn(2, 2, 20, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x).float())
        half = layer(x.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, layer(x.bfloat16().float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [3, 15])
def test_half_precision_is_computed_in_float32_without_autocast(kernel, dtype):
    x, weight = torch.randn(2, 2, 20, 24).to(dtype), torch.randn(3, 2, kernel, kernel).to(dtype)
    bias = torch.randn(3).to(dtype)
    y = conv.conv2d(x, weight, bias)
    assert y.dtype == torch.float32
    assert torch.equal(y, conv.conv2d(x.float(), weight.float(), bias.float()))
    assert conv.conv2d(x.double(), weight).dtype == torch.float64


def test_a_second_derivative_raises_an_error():
    x, weight = (torch.randn(1, 1, 8, 8, requires_grad=True), torch.randn(1, 1, 3, 3))
    with pytest.raises(RuntimeError, match="no second derivative: use mrlib.ops.conv.direct"):
        torch.autograd.grad(conv.fourier(x, weight).sum(), x, create_graph=True)


def test_a_compiled_model_may_call_the_layer():
    layer, x = conv.LargeKernelConv2d(1, 4, 15), torch.randn(2, 1, 20, 20)
    compiled = torch.compile(lambda x: layer(x).relu() * 2, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x).relu() * 2)


def test_a_kernel_without_a_centre_raises_an_error():
    with pytest.raises(ValueError, match="4 x 3 has no centre"):
        conv.conv2d(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 4, 3))
