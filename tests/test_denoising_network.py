"""The blind spot is exact, and tiles leave no trace."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from fiji_bridge.denoising.network import BlindSpotNetwork, neighbouring
from fiji_bridge.denoising.optimizer import DECAY, RATIO, Optimizer
from fiji_bridge.denoising.prediction import symmetric_outputs, tiled_outputs


def lively_network(features=(4, 5, 6), seed=0, **shape):
    """A network whose outputs depend strongly on what it sees."""
    torch.manual_seed(seed)
    network = BlindSpotNetwork(features, head=(8, 4), **shape)
    torch.nn.init.normal_(network.last.weight)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def assert_blind_but_sees_its_neighbours(outputs, image, pixels):
    for y, x in pixels:
        for channel in outputs[0, :, y, x]:
            (gradient,) = torch.autograd.grad(channel, image, retain_graph=True)
            assert gradient[0, 0, y, x] == 0
            around = gradient[0, 0, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            assert (around != 0).sum() == around.numel() - 1


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (13, 7)])
def test_no_pixel_sees_itself_but_all_its_neighbours(size):
    image = torch.randn(1, 1, *size, requires_grad=True)
    assert_blind_but_sees_its_neighbours(lively_network()(image), image, list(product(*map(range, size))))


def test_no_pixel_sees_itself_in_any_orientation():
    image = torch.randn(1, 1, 9, 10, requires_grad=True)
    outputs = symmetric_outputs(lively_network((4, 5)), image)
    assert_blind_but_sees_its_neighbours(outputs, image, list(product(range(9), range(10))))


def test_no_pixel_sees_itself_at_the_seams_of_tiles():
    network = lively_network((4, 5))
    image = torch.randn(1, 1, 47, 59, requires_grad=True)
    assert min(image.shape[-2:]) > 8 + 2 * network.halo
    outputs = tiled_outputs(network, image, symmetries=1, tile=8)
    assert_blind_but_sees_its_neighbours(
        outputs, image, [(0, 0), (7, 15), (8, 16), (7, 16), (8, 15), (25, 58), (46, 0), (46, 58)]
    )


def test_a_bright_pixel_changes_nothing_in_its_own_prior():
    network = lively_network((8, 12, 16, 20))
    image = torch.randn(1, 1, 37, 41)
    for y, x in ((0, 0), (36, 40), (18, 20), (0, 25)):
        brighter = image.clone()
        brighter[..., y, x] += 1000
        with torch.no_grad():
            change = network(brighter) - network(image)
        assert change[..., y, x].abs().max() == 0
        assert change.abs().max() > 0


@pytest.mark.parametrize("radius", [1, 3])
def test_a_wider_blind_spot_is_a_square_and_no_more(radius):
    image = torch.randn(1, 1, 22, 19, requires_grad=True)
    outputs = symmetric_outputs(lively_network(blind_radius=radius), image)
    for y, x in product((0, 5, 11, 21), (0, 9, 18)):
        (gradient,) = torch.autograd.grad(outputs[0, 0, y, x], image, retain_graph=True)
        around = gradient[0, 0, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        assert (around == 0).all()
        wider = gradient[
            0, 0, max(0, y - radius - 1) : y + radius + 2, max(0, x - radius - 1) : x + radius + 2
        ]
        assert (wider != 0).sum() == wider.numel() - around.numel()


@pytest.mark.parametrize("symmetries", [1, 8])
def test_neighbouring_frames_are_seen_whole_and_the_pixel_itself_never(symmetries):
    frames = torch.randn(1, 5, 12, 14, requires_grad=True)
    outputs = symmetric_outputs(lively_network(neighbours=2), frames, symmetries)
    for y, x in ((0, 0), (6, 7), (11, 13), (3, 0)):
        (gradient,) = torch.autograd.grad(outputs[0, 1, y, x], frames, retain_graph=True)
        assert gradient[0, 0, y, x] == 0
        assert (gradient[0, 1:, y, x] != 0).all()


def test_the_average_over_orientations_turns_with_a_movie():
    network = lively_network(neighbours=1)
    frames = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        back = symmetric_outputs(network, frames.rot90(1, (2, 3))).rot90(-1, (2, 3))
        torch.testing.assert_close(back, symmetric_outputs(network, frames), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("neighbours", [1, 2, 3])
@pytest.mark.parametrize("total", [2, 3, 9])
def test_no_frame_is_its_own_neighbour(total, neighbours):
    frames = np.arange(total)
    beside = neighbouring(frames, total, neighbours)
    assert beside.shape == (total, 2 * neighbours)
    assert (beside != frames[:, None]).all()
    assert beside.min() >= 0
    assert beside.max() < total


def test_inside_a_movie_the_neighbours_are_those_before_and_after():
    assert neighbouring(np.array([4]), 9, 2).tolist() == [[2, 3, 5, 6]]
    assert neighbouring(np.array([0, 8]), 9, 2).tolist() == [[2, 1, 1, 2], [6, 7, 7, 6]]


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_no_pixel_sees_further_than_the_halo(scales):
    network = lively_network((4,) * scales)
    side = 2 * network.halo + 9
    image = torch.randn(1, 1, side, side, requires_grad=True)
    for y in range(side // 2, side // 2 + network.stride):  # every position within the coarsest pixel
        (gradient,) = torch.autograd.grad(network(image)[0, 0, y, y], image)
        seen = gradient[0, 0].nonzero()
        assert network.halo / 2 < (seen - y).abs().max() <= network.halo


@pytest.mark.parametrize("symmetries", [1, 8])
def test_tiles_equal_the_whole(symmetries):
    network = lively_network((6, 8, 10))
    image = torch.randn(1, 1, 111, 150)
    assert min(image.shape[-2:]) > 28 + 2 * network.halo
    with torch.no_grad():
        whole = symmetric_outputs(network, image, symmetries)
        tiles = tiled_outputs(network, image, symmetries, tile=28)
    torch.testing.assert_close(tiles, whole, rtol=1e-5, atol=1e-5)


def test_the_average_over_orientations_turns_with_the_image():
    network = lively_network()
    image = torch.randn(1, 1, 24, 24)
    with torch.no_grad():
        straight = symmetric_outputs(network, image)
        for turned in (image.rot90(1, (2, 3)), image.flip(2)):
            back = symmetric_outputs(network, turned)
            back = back.rot90(-1, (2, 3)) if turned.equal(image.rot90(1, (2, 3))) else back.flip(2)
            torch.testing.assert_close(back, straight, rtol=1e-4, atol=1e-4)


def test_gradients_written_by_hand_are_those_of_finite_differences():
    network = BlindSpotNetwork((2, 3, 2), neighbours=1, blind_radius=1).double()
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    kernels = [network.half_plane.stem[0].weight, network.half_plane.up[0][0].weight]

    def features(image, *_):
        return network.half_planes(image), network.beside(image[:, 1:])

    assert torch.autograd.gradcheck(features, (image, *kernels))


@pytest.mark.filterwarnings("ignore:Input #")  # that float32 is not exact
def test_gradients_of_the_last_weights_are_those_of_finite_differences():
    network = BlindSpotNetwork((2, 2), head=(3, 3))
    features = torch.randn(1, 4, 4, 8, requires_grad=True)
    weight = network.last.weight

    def outputs(features, _):
        return network.combine(features, torch.zeros(1, 1, 4, 4))

    assert torch.autograd.gradcheck(outputs, (features, weight), eps=1e-3, atol=1e-3, nondet_tol=0)


def test_kernels_take_the_steps_of_pytorchs_muon():
    shapes = [(16, 12, 3, 3), (24, 56, 3, 3), (64, 48, 1, 1), (256, 32, 1, 1), (12, 12, 3, 3), (12,)]
    weights = [Parameter(torch.randn(shape)) for shape in shapes]
    for weight in weights[:5]:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def rows(kernel):
        return kernel.permute(0, 2, 3, 1).flatten(1)

    matrices = [Parameter(rows(weight.detach()).clone()) for weight in weights[:4]]
    before = [weight.detach().clone() for weight in weights]
    ours, theirs = Optimizer(weights), torch.optim.Muon(matrices, lr=RATIO * 1e-2, weight_decay=DECAY)
    for _ in range(5):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        for weight, matrix in zip(weights, matrices, strict=False):
            matrix.grad = rows(weight.grad).clone()
        ours.step(1e-2)
        theirs.step()
    for weight, matrix, old in zip(weights, matrices, before, strict=False):
        change = rows(weight.detach() - old)
        other = change - (matrix.detach() - rows(old))
        assert other.norm() < 0.03 * change.norm()  # they are orthogonalized in bfloat16
    for weight, old in zip(weights, before, strict=True):
        assert (weight - old).abs().max() > 1e-3
        assert weight.grad is None
