"""`mrlib.ops.conv_tiles`: tiles of a map give the network's values and gradients of the whole map."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from mrlib.ops import conv, conv_tiles
from mrlib.ops.conv_tiles import Kernels, Network, Tiling, large_kernel_network
from tests.support.memory import costs


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 20 points, few at once, so that small maps take many."""
    for name, value in (("ONE_TILE", 8), ("TILES", (20,)), ("GROUP", {"cpu": 4000}), ("PIECE", {"cpu": 1500})):
        monkeypatch.setattr(conv_tiles, name, value)


@pytest.fixture(params=["kept", "computed again"])
def keeping(request, monkeypatch):
    """Keep the hidden values for the backward pass, or compute them again."""
    if request.param == "computed again":
        monkeypatch.setattr(conv_tiles, "KEPT", 0)


def network_of(channels, kernel, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    c, C = channels, kernel
    shapes = [(c, 1, C, C), (c,), (c, c, C, C), (c,), (c, c), (c,), (1, c), (1,)]
    return Network(
        *[torch.randn(x, generator=g, dtype=torch.float64).mul(0.3).to(dtype).requires_grad_() for x in shapes]
    )


def maps_of(lengths, pad_to=0, dtype=torch.float64):
    """Random maps (B, T, T), 0 on padding, which need a gradient, and the mask bool (B, T)."""
    T = max(*lengths, pad_to)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    g = torch.Generator().manual_seed(1)
    s = torch.stack([F.pad(torch.randn(n, n, generator=g, dtype=torch.float64), (0, T - n) * 2) for n in lengths])
    return s.to(dtype).requires_grad_(), mask


def cells_of(mask, triangle):
    """The cells that are needed, bool (B, T, T)."""
    real = mask[:, :, None] & mask[:, None]
    return real.triu() if triangle else real


def by_layers(s, mask, network):
    """The network a layer at a time, by the defining sum of a convolution."""
    real = cells_of(mask, triangle=False)[:, None]
    x = F.relu(conv.direct(s[:, None], network.first) + network.first_bias[:, None, None]) * real
    x = F.relu(conv.direct(x, network.second) + network.second_bias[:, None, None]) * real
    x = F.relu(F.linear(x.movedim(1, -1), network.mix, network.mix_bias))
    return F.linear(x, network.last, network.last_bias)[..., 0]


def assert_equal_by_layers(s, mask, network, triangle):
    """Values in the cells that are needed, and all gradients of a loss on them."""
    needed = cells_of(mask, triangle)
    dp = torch.randn(s.shape, generator=torch.Generator().manual_seed(2), dtype=s.dtype) * needed
    p, expected = large_kernel_network(s, mask, network, triangle=triangle), by_layers(s, mask, network)
    torch.testing.assert_close(p * needed, expected * needed)
    inputs = (s, *network)
    torch.testing.assert_close(torch.autograd.grad(p, inputs, dp), torch.autograd.grad(expected, inputs, dp))


@pytest.mark.parametrize("lengths", [[1], [2, 1], [3], [7, 1, 12], [5, 12, 12]])
@pytest.mark.parametrize("kernel", [3, 5, 9])
def test_a_small_map_has_the_values_and_gradients_of_the_layers(lengths, kernel, keeping):
    """Maps of one clip, smaller than the kernel, and ragged batches; every cell, also below the diagonal."""
    s, mask = maps_of(lengths)
    assert Tiling.of(mask, kernel, triangle=True).count == 1
    for triangle in (False, True):
        assert_equal_by_layers(s, mask, network_of(3, kernel), triangle)
    needed = cells_of(mask, triangle=False)
    p = large_kernel_network(s, mask, network_of(3, kernel), triangle=True)
    torch.testing.assert_close(p * needed, by_layers(s, mask, network_of(3, kernel)) * needed)


@pytest.mark.parametrize("triangle", [False, True])
@pytest.mark.parametrize("lengths", [[9], [11, 12, 13], [30, 1, 7, 24, 25], [23], [24], [25], [36, 37]])
def test_many_tiles_have_the_values_and_gradients_of_the_layers(lengths, triangle, small_tiles, keeping):
    """Kernel 5 on a grid of 30 points has tiles of 22 clips, kernel 3 on 20 points tiles of 16."""
    for kernel in (3, 5):
        s, mask = maps_of(lengths, pad_to=32)
        assert Tiling.of(mask, kernel, triangle).count > 1
        assert_equal_by_layers(s, mask, network_of(3, kernel), triangle)


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_lengths_around_the_border_of_a_tile(step, small_tiles, keeping):
    s, mask = maps_of([2 * 22 + step, 22 + step])
    assert Tiling.of(mask, 5, triangle=True).tile == 22
    assert_equal_by_layers(s, mask, network_of(2, 5), triangle=True)


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_lengths_around_that_of_one_tile(step):
    """A map of 150 clips with kernel 21 is the largest in one piece."""
    s, mask = maps_of([150 + step, 140])
    assert Tiling.of(mask, 21, triangle=True).count == (1 if step < 1 else 2)
    assert_equal_by_layers(s, mask, network_of(2, 21), triangle=True)


def test_a_map_is_cut_into_the_tiles_with_the_least_work():
    """With kernel 21: 300 clips are ten tiles of 88 or six of 104."""
    sizes = {n: Tiling.of(torch.ones(1, n, dtype=torch.bool), 21, triangle=True) for n in (75, 300, 1800)}
    assert [(t.grid, t.tile, t.count) for t in sizes.values()] == [(90, 75, 1), (144, 104, 3), (128, 88, 21)]


def test_gradients_equal_finite_differences(small_tiles, keeping):
    s, mask = maps_of([9, 4])
    needed = cells_of(mask, triangle=True)
    network = Network(*[x.detach()[:2] for x in network_of(2, 3)])

    def values(s, *parameters):
        return large_kernel_network(s * needed, mask, Network(*parameters), triangle=True)[needed]

    torch.autograd.gradcheck(values, (s.detach().requires_grad_(), *[x.clone().requires_grad_() for x in network]))


@pytest.mark.parametrize("length", [75, 260])
def test_float32_is_within_1e_5_of_float64(length):
    """At kernel 21 [F2SGD Eq. 13], values and gradients, of the largest one."""
    s, mask = maps_of([length, length - 20])
    network, needed = network_of(4, 21), cells_of(mask, triangle=True)
    dp = torch.randn(s.shape, generator=torch.Generator().manual_seed(2), dtype=s.dtype) * needed
    exact = by_layers(s, mask, network)
    s32, *network32 = (x.detach().float().requires_grad_() for x in (s, *network))
    p = large_kernel_network(s32, mask, Network(*network32), triangle=True)
    gradients = torch.autograd.grad(p, (s32, *network32), dp.float())
    for value, expected in (
        (p * needed, exact * needed),
        *zip(gradients, torch.autograd.grad(exact, (s, *network), dp), strict=True),
    ):
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max()


def test_every_output_of_the_triangle_is_in_one_tile_and_no_tile_lies_below_it(small_tiles):
    mask = maps_of([60, 25])[1]
    tiling = Tiling.of(mask, 5, triangle=True)
    count = torch.zeros(2, tiling.count * tiling.tile, tiling.count * tiling.tile, dtype=torch.int64)
    for sample, row, column, _ in tiling.tiles:
        assert row <= column
        count[
            sample, row * tiling.tile : (row + 1) * tiling.tile, column * tiling.tile : (column + 1) * tiling.tile
        ] += 1
    assert count.max() == 1 and (count[:, :60, :60][cells_of(mask, triangle=True)] == 1).all()
    assert [(t.row, t.column) for t in tiling.tiles if t.sample == 1 and t.row > 1] == []  # 25 clips are two tiles


def test_a_sample_does_not_depend_on_other_samples(small_tiles):
    s, mask = maps_of([40, 23, 7])
    network = network_of(3, 5)
    together = large_kernel_network(s, mask, network, triangle=True)
    for b, n in enumerate([40, 23, 7]):
        alone = large_kernel_network(s[b : b + 1, :n, :n], mask[b : b + 1, :n], network, triangle=True)
        torch.testing.assert_close(together[b, :n, :n].triu(), alone[0].triu())


def test_padding_in_the_middle_is_padding_too(small_tiles, keeping):
    s, mask = maps_of([50])
    mask[0, 20:26] = False
    s = (s.detach() * cells_of(mask, triangle=False)).requires_grad_()
    assert_equal_by_layers(s, mask, network_of(3, 5), triangle=True)


def test_equal_calls_give_equal_bytes(small_tiles, keeping):
    s, mask = maps_of([40, 23, 7], dtype=torch.float32)
    network = network_of(3, 5, torch.float32)
    runs = []
    for _ in range(3):
        p = large_kernel_network(s, mask, network, triangle=True)
        runs.append((p, *torch.autograd.grad(p.square().sum(), (s, *network))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_gradients_do_not_depend_on_whether_hidden_values_are_kept(small_tiles, monkeypatch):
    s, mask = maps_of([40, 23], dtype=torch.float32)
    network, gradients = network_of(3, 5, torch.float32), []
    for kept in (2**27, 0):
        monkeypatch.setattr(conv_tiles, "KEPT", kept)
        p = large_kernel_network(s, mask, network, triangle=True)
        gradients.append(torch.autograd.grad(p.square().sum(), (s, *network), retain_graph=True))
        again = torch.autograd.grad(p.square().sum(), (s, *network))
        assert all(torch.equal(a, b) for a, b in zip(gradients[-1], again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_batch_without_clips_gives_zeros_and_zero_gradients():
    s, mask = maps_of([4, 3])
    network = network_of(2, 3)
    p = large_kernel_network(s, torch.zeros_like(mask), network, triangle=True)
    assert not any(x.any() for x in torch.autograd.grad(p.sum(), (s, *network)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype):
    s, mask = maps_of([9, 4], dtype=torch.float32)
    network = network_of(2, 3, torch.float32)
    expected = large_kernel_network(s, mask, network, triangle=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(large_kernel_network(s, mask, network, triangle=True), expected)
    half = [x.detach().to(dtype) for x in (s, *network)]
    p = large_kernel_network(half[0], mask, Network(*half[1:]), triangle=True)
    assert p.dtype == torch.float32
    whole = [x.float() for x in half]
    assert torch.equal(p, large_kernel_network(whole[0], mask, Network(*whole[1:]), triangle=True))


def test_a_second_derivative_raises_an_error():
    s, mask = maps_of([4])
    with pytest.raises(RuntimeError, match="no second derivative: convolve with mrlib.ops.conv.direct"):
        torch.autograd.grad(large_kernel_network(s, mask, network_of(2, 3), triangle=True).sum(), s, create_graph=True)


def test_a_compiled_model_may_call_the_network():
    s, mask = maps_of([9], dtype=torch.float32)
    network = network_of(2, 3, torch.float32)

    def model(s):
        return large_kernel_network(s * 2, mask, network, triangle=True).relu()

    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(s), model(s))


@pytest.mark.parametrize(("kernel", "grid", "shift"), list(itertools.product([3, 5], [8, 12], [0, 1])))
def test_kernels_are_transformed_as_if_on_a_grid_of_zeros(kernel, grid, shift):
    """And the way back is the adjoint: <A w, d> = <w, A^T d>, where conjugate frequencies count twice."""
    g = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 3, kernel, kernel, generator=g, dtype=torch.float64)
    kernels = Kernels(kernel, grid, shift, weight)
    blocks = kernels.blocks(weight)
    expected = torch.fft.rfft2(F.pad(weight, (0, grid - kernel) * 2).roll((-shift, -shift), (2, 3)))
    expected = expected.flatten(2).permute(2, 1, 0)  # (F, I, O)
    blocks = blocks.view(-1, 3, 2, 2, 2)  # (F, I, re or im, O, re or im)
    torch.testing.assert_close(torch.complex(blocks[:, :, 0, :, 0], blocks[:, :, 1, :, 0]), expected)
    torch.testing.assert_close(torch.complex(blocks[:, :, 1, :, 1], -blocks[:, :, 0, :, 1]), expected)
    torch.testing.assert_close(kernels.taps(kernels.spectrum(weight[0])), weight[0])
    d = torch.randn(len(expected), 6, 4, generator=g, dtype=torch.float64)
    twice = torch.full((grid // 2 + 1,), 2.0, dtype=torch.float64)
    twice[[0, -1]] = 1
    inner = (blocks.reshape(d.shape) * d).sum((1, 2)) @ twice.repeat(grid) / grid**2
    torch.testing.assert_close((weight * kernels.blocks_backward(d)).sum(), inner)


def test_no_hidden_map_is_as_large_as_the_video_is_long():
    """16 channels on 1,200 clips take 92 MB for each hidden map; a prediction holds less, a training step too."""
    setup = """
import torch
from mrlib.ops import conv_tiles
from mrlib.ops.conv_tiles import Network, large_kernel_network
torch.set_num_threads(1)
conv_tiles.KEPT, conv_tiles.GROUP = 0, {"cpu": 2**21}
c, C, T = 16, 5, 1200
shapes = [(c, 1, C, C), (c,), (c, c, C, C), (c,), (c, c), (c,), (1, c), (1,)]
network = Network(*[torch.rand(x, requires_grad=True) for x in shapes])
s, mask = torch.rand(1, T, T, requires_grad=True), torch.ones(1, T, dtype=torch.bool)
def backward(length):
    p = large_kernel_network(s[:, :length, :length], mask[:, :length], network, triangle=True)
    p.sum().backward()
"""
    small, large = costs(setup, ["backward(200)", "backward(1200)"])
    assert small.said == large.said == "done"
    assert large.size - small.size < 70e6  # seven maps of one channel, of 5.8 MB, and a hidden map has 92 MB
