import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import stack_files
import tifffile
import xarray as xr

from fiji_bridge.camera_estimation import sample_frames
from fiji_bridge.defects import defective
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack import StackWriter, frame_blocks, open_stack, positions, some_frames, write_stack

RNG = np.random.default_rng(1)
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"]


def movie(frames: int = 6, height: int = 12, width: int = 16, dtype: str = "uint16") -> np.ndarray:
    values = RNG.integers(0, 120, (frames, height, width))
    return (values + 0.25 if dtype.startswith("float") else values).astype(dtype)


def hyperstack(**sizes: int) -> xr.DataArray:
    shape = tuple(sizes.values())
    values = np.arange(np.prod(shape), dtype="uint16").reshape(shape)
    return xr.DataArray(values, dims=tuple(sizes), attrs={"pixel_size_nm": 106.7})


def refusal(source: object, **options: object) -> str:
    """Give the sentence that opening and reading `source` is refused with."""
    with pytest.raises(FijiBridgeError) as error:
        for _, stack in positions(open_stack(source, **options)):
            for _ in frame_blocks(stack):
                pass
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def frames_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the number of every image that is read from a TIFF."""
    from fiji_bridge.stack_formats import tiff

    numbers: list[int] = []
    original = tiff._Images.read

    def spy(self: tiff._Images, wanted: list[int], out: np.ndarray) -> None:
        numbers.extend(wanted)
        original(self, wanted, out)

    monkeypatch.setattr(tiff._Images, "read", spy)
    return numbers


# What is a stack


@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_that_nothing_names_are_frames_of_their_own_dtype(tmp_path: Path, dtype: str) -> None:
    frames = movie(dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack")
    stack = open_stack(tmp_path / "a.tif")
    assert stack.dims == ("t", "y", "x")
    assert stack.dtype == dtype and stack.name is None
    assert stack.attrs["pixel_size_nm"] is None
    assert stack.attrs["source"] == str(tmp_path / "a.tif")
    np.testing.assert_array_equal(stack, frames)


def test_a_single_image_is_a_stack_of_one(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", movie(1)[0])
    assert open_stack(tmp_path / "a.tif").sizes == {"t": 1, "y": 12, "x": 16}


@pytest.mark.parametrize(
    "options",
    [
        {"bigtiff": True},
        {"byteorder": ">"},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw", "rowsperstrip": 5},
        {"tile": (16, 16)},
        {"rowsperstrip": 5},
        {"metadata": None},
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"ome": True, "metadata": {"axes": "TYX"}},
        {"ome": True, "metadata": {"axes": "TYX"}, "compression": "zstd", "tile": (16, 32)},
    ],
    ids=str,
)
def test_every_layout_of_tiff_gives_the_same_frames(tmp_path: Path, options: dict) -> None:
    frames = movie(5, 23, 37)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack", **options)
    stack = open_stack(tmp_path / "a.tif")
    np.testing.assert_array_equal(stack, frames)
    np.testing.assert_array_equal(stack[3, 4:9, 5], frames[3, 4:9, 5])
    assert stack.dtype.isnative and stack.to_numpy().dtype.isnative


def test_frames_appended_one_by_one_are_one_stack(tmp_path: Path) -> None:
    frames = movie()
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for frame in frames:
            writer.write(frame)
    np.testing.assert_array_equal(open_stack(tmp_path / "a.tif"), frames)


def test_slices_alone_are_a_movie_and_go_back_as_slices(tmp_path: Path) -> None:
    frames = movie()
    tifffile.imwrite(tmp_path / "a.tif", frames, imagej=True, metadata={"axes": "ZYX"})
    stack = open_stack(tmp_path / "a.tif")
    assert stack.sizes == {"t": 6, "y": 12, "x": 16}
    assert stack.attrs["axes_from_file"] == "ZYX"
    for name in ("b.tif", "b.ome.tif", "b.zarr"):
        write_stack(stack, tmp_path / name)
        again = open_stack(tmp_path / name)
        assert again.attrs["axes_from_file"] == "ZYX"
        np.testing.assert_array_equal(again, frames)
    assert tifffile.TiffFile(tmp_path / "b.tif").imagej_metadata["slices"] == 6


def test_an_imagej_file_with_dozens_of_channels_is_a_movie(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", movie(30), imagej=True)  # without axes, tifffile calls them channels
    assert open_stack(tmp_path / "a.tif").sizes["t"] == 30
    tifffile.imwrite(tmp_path / "b.tif", movie(3), imagej=True, metadata={"axes": "CYX"})
    assert open_stack(tmp_path / "b.tif").sizes == {"t": 1, "c": 3, "y": 12, "x": 16}


@pytest.mark.parametrize("shape", [(12, 16), (6, 12, 16)])
def test_arrays_are_stacks(shape: tuple[int, ...]) -> None:
    values = RNG.normal(size=shape).astype(">f4")
    stack = open_stack(values)
    assert stack.dims == ("t", "y", "x") and stack.dtype == np.float32 and stack.dtype.isnative
    np.testing.assert_array_equal(stack, values.reshape(-1, 12, 16))


def test_a_data_array_in_any_order_becomes_t_c_z_y_x() -> None:
    given = hyperstack(x=9, z=3, y=7, c=1)
    stack = open_stack(given, pixel_size_nm=50)
    assert stack.dims == ("t", "z", "y", "x")
    assert stack.attrs["pixel_size_nm"] == 50 and given.attrs["pixel_size_nm"] == 106.7
    np.testing.assert_array_equal(stack[0], given[:, :, :, 0].transpose("z", "y", "x"))
    xr.testing.assert_identical(open_stack(stack), stack)


# Files together


def test_a_folder_is_in_natural_order_as_the_real_recording_is(shared_data: Path) -> None:
    folder = shared_data / "sm_tetrapod_real"
    stack = open_stack(folder)
    assert stack.sizes == {"t": 20, "y": 332, "x": 492} and stack.dtype == np.uint16
    names = sorted((path.stem for path in folder.glob("*.tif")), key=int)
    for number, name in enumerate(names):
        np.testing.assert_array_equal(stack[number], tifffile.imread(folder / f"{name}.tif"))


def test_pngs_of_fmdd_are_frames(shared_data: Path) -> None:
    from PIL import Image

    folder = shared_data / "fmdd_bpae_50" / "raw" / "1"
    stack = open_stack(folder)
    assert stack.sizes == {"t": 50, "y": 512, "x": 512} and stack.dtype == np.uint8
    last = np.asarray(Image.open(folder / "HV110_P0500510049.png"))
    np.testing.assert_array_equal(stack[-1], last)
    np.testing.assert_array_equal(open_stack(folder / "HV110_P0500510049.png")[0], last)


def test_a_16_bit_png_keeps_its_values(tmp_path: Path) -> None:
    import imagecodecs

    image = RNG.integers(0, 65536, (20, 30)).astype("uint16")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(image))
    np.testing.assert_array_equal(open_stack(tmp_path / "a.png")[0], image)


def test_a_list_is_one_stack_in_the_given_order(tmp_path: Path) -> None:
    parts = [movie(2), movie(1)[0], movie(3)]
    paths = [tmp_path / name for name in ("b.tif", "c.tif", "a.tif")]
    for path, part in zip(paths, parts, strict=True):
        tifffile.imwrite(path, part, photometric="minisblack")
    expected = np.concatenate([part.reshape(-1, 12, 16) for part in parts])
    stack = open_stack([str(path) for path in paths])
    np.testing.assert_array_equal(stack, expected)
    np.testing.assert_array_equal(stack[1:6:2, 3:5], expected[1:6:2, 3:5])
    np.testing.assert_array_equal(stack[::-1], expected[::-1])
    np.testing.assert_array_equal(stack[[0, 4, 2]], expected[[0, 4, 2]])


def test_hyperstacks_in_a_list_join_in_time_whatever_their_order_of_axes(tmp_path: Path) -> None:
    first, second = hyperstack(t=2, c=2, z=3, y=8, x=9), hyperstack(c=2, t=3, z=3, y=8, x=9)
    write_stack(first, tmp_path / "a.zarr")
    import zarr

    zarr.save_array(tmp_path / "b.zarr", second.to_numpy())
    zarr.open_array(tmp_path / "b.zarr").attrs["_ARRAY_DIMENSIONS"] = list(second.dims)
    stack = open_stack([tmp_path / "a.zarr", tmp_path / "b.zarr"])
    expected = np.concatenate([first, second.transpose(*first.dims)])
    np.testing.assert_array_equal(stack, expected)
    np.testing.assert_array_equal(stack[1:4, 1, 2, 3:5], expected[1:4, 1, 2, 3:5])


def test_files_of_mixed_size_or_type_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "1.tif", movie(1)[0])
    tifffile.imwrite(tmp_path / "2.tif", movie(1, 12, 17)[0])
    assert "2.tif has 17 × 12 pixels" in refusal(tmp_path)
    tifffile.imwrite(tmp_path / "2.tif", movie(1, dtype="uint8")[0])
    assert "2.tif has 16 × 12 pixels of uint8" in refusal(tmp_path)
    write_stack(hyperstack(t=2, c=3, y=12, x=16), tmp_path / "2.tif")
    assert "3 c" in refusal(tmp_path)


def test_a_folder_ignores_what_is_no_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "10.tif", movie(1)[0])
    tifffile.imwrite(tmp_path / "9.tif", movie(1)[0])
    (tmp_path / "notes.txt").write_text("laser at 30%")
    (tmp_path / "._9.tif").write_bytes(b"left behind by macOS")
    np.testing.assert_array_equal(open_stack(tmp_path)[0], tifffile.imread(tmp_path / "9.tif"))


# Pixel size


@pytest.mark.parametrize(
    ("unit", "pixels_per_unit", "expected"),
    [
        ("\\u00B5m", 6.25, 160.0),
        ("um", 1 / 0.1067, 106.7),
        ("micron", 10, 100.0),
        ("nm", 0.01, 100.0),
        ("mm", 5000, 200.0),
        ("inch", 254000, 100.0),
        ("inch", 72, None),
        ("pixel", 1, None),
    ],
)
def test_imagej_units_give_the_pixel_size(
    tmp_path: Path, unit: str, pixels_per_unit: float, expected: float | None
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        movie(),
        imagej=True,
        resolution=(pixels_per_unit, pixels_per_unit),
        metadata={"unit": unit, "axes": "TYX"},
    )
    assert open_stack(tmp_path / "a.tif").attrs["pixel_size_nm"] == expected
    assert open_stack(tmp_path / "a.tif", pixel_size_nm=99).attrs["pixel_size_nm"] == 99


@pytest.mark.parametrize(
    ("per_unit", "unit", "expected"),
    [
        (72, "INCH", None),
        (300, "INCH", None),
        (1e5, "CENTIMETER", 100.0),
        (254000, "INCH", 100.0),
        (1, "NONE", None),
    ],
)
def test_a_printers_resolution_is_no_pixel_size(
    tmp_path: Path, per_unit: float, unit: str, expected: float | None
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        movie(),
        photometric="minisblack",
        resolution=(per_unit, per_unit),
        resolutionunit=unit,
    )
    assert open_stack(tmp_path / "a.tif").attrs["pixel_size_nm"] == expected


@pytest.mark.parametrize(
    ("x", "y", "unit", "expected"),
    [(0.11, 0.11, "µm", 110.0), (130, 130, "nm", 130.0), (0.1, 0.2, "µm", None), (1, 1, "pixel", None)],
)
def test_ome_physical_size_gives_the_pixel_size(
    tmp_path: Path, x: float, y: float, unit: str, expected: float | None
) -> None:
    sizes = {"PhysicalSizeX": x, "PhysicalSizeY": y, "PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", movie(), metadata={"axes": "TYX", **sizes})
    assert open_stack(tmp_path / "a.ome.tif").attrs["pixel_size_nm"] == expected


def test_the_plugins_reference_stacks_have_the_pixel_size_of_their_camera(shared_data: Path) -> None:
    for name in ("default", "em_gain"):
        folder = shared_data / "thunderstorm_reference" / name
        camera = json.loads((folder / "reference.json").read_text())["camera"]
        size = float(camera.split("pixelsize=")[1].split()[0])
        stack = open_stack(folder / "stack.tif")
        assert stack.attrs["pixel_size_nm"] == pytest.approx(size)
        assert stack.sizes == {"t": 50, "y": 128, "x": 128}


@pytest.mark.parametrize("size", [0, -160.0, np.nan, np.inf])
def test_a_pixel_size_must_be_positive(size: float) -> None:
    assert "positive" in refusal(movie(), pixel_size_nm=size)


# Channels and z


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.zarr"])
def test_channels_and_z_are_taken_apart_and_put_back(tmp_path: Path, name: str) -> None:
    stack = hyperstack(t=4, c=2, z=3, y=12, x=10)
    with StackWriter(tmp_path / name, stack, "uint16") as writer:
        for where, frames in reversed(list(positions(stack))):
            assert frames.dims == ("t", "y", "x")
            for first, block in frame_blocks(frames, 3):
                writer.write(first, block, **where)
    again = open_stack(tmp_path / name)
    assert again.dims == ("t", "c", "z", "y", "x")
    assert again.attrs["pixel_size_nm"] == pytest.approx(106.7)
    np.testing.assert_array_equal(again, stack)
    assert [where for where, _ in positions(again)][:4] == [
        {"c": 0, "z": 0},
        {"c": 0, "z": 1},
        {"c": 0, "z": 2},
        {"c": 1, "z": 0},
    ]


def test_imagej_finds_frames_channels_slices_and_unit_where_it_looks_for_them(tmp_path: Path) -> None:
    write_stack(hyperstack(t=4, c=2, z=3, y=12, x=10), tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        found = tif.imagej_metadata
        assert not tif.is_bigtiff and len(tif.pages) == 24
        assert (found["frames"], found["channels"], found["slices"]) == (4, 2, 3)
        assert found["images"] == 24 and found["hyperstack"] and found["unit"] == "\\u00B5m"
        numerator, denominator = tif.pages.first.tags["XResolution"].value
        assert denominator / numerator == pytest.approx(0.1067)


@pytest.mark.parametrize("order", ["TCZYX", "ZCTYX", "CTZYX"])
def test_any_order_of_axes_in_ome_is_put_right(tmp_path: Path, order: str) -> None:
    given = hyperstack(**{axis.lower(): {"T": 2, "C": 3, "Z": 4, "Y": 8, "X": 9}[axis] for axis in order})
    tifffile.imwrite(
        tmp_path / "a.ome.tif", given.to_numpy(), metadata={"axes": order}, photometric="minisblack"
    )
    np.testing.assert_array_equal(
        open_stack(tmp_path / "a.ome.tif"), given.transpose("t", "c", "z", "y", "x")
    )


# Sets of files


@pytest.mark.parametrize("master", [False, True])
def test_any_file_of_an_ome_set_gives_the_whole(tmp_path: Path, master: bool) -> None:
    frames = movie(7)
    for path in stack_files.ome_set(tmp_path, frames, 3, master=master):
        stack = open_stack(path)
        assert stack.attrs["pixel_size_nm"] == 100.0
        np.testing.assert_array_equal(stack, frames)
    np.testing.assert_array_equal(open_stack(tmp_path), frames)  # the folder: each file once


@pytest.mark.parametrize("master", [False, True])
def test_a_set_with_a_file_missing_is_refused_by_its_name(tmp_path: Path, master: bool) -> None:
    paths = stack_files.ome_set(tmp_path, movie(7), 3, master=master)
    paths[0].unlink()
    assert "cells_0.ome.tif" in refusal(paths[1])


def test_frames_planned_and_never_recorded_are_no_frames(tmp_path: Path) -> None:
    frames = movie(5)
    (path,) = stack_files.ome_set(tmp_path, frames, 5, planned=20)
    np.testing.assert_array_equal(open_stack(path), frames)


def micro_manager_set(
    folder: Path, frames: np.ndarray, per_file: int, planned: int | None = None
) -> list[Path]:
    """Write a movie (t, c, y, x) as Micro-Manager 2 splits it."""
    times, channels = frames.shape[:2]
    planned = planned or times
    names = [f"cells_MMStack_Pos0{f'_{n}' if n else ''}.ome.tif" for n in range(-(-times // per_file))]
    blocks = "".join(
        f'<TiffData FirstT="{t}" FirstC="{c}" FirstZ="0" IFD="{t % per_file * channels + c}" PlaneCount="1">'
        f'<UUID FileName="{names[t // per_file]}">urn:uuid:{t // per_file}</UUID></TiffData>'
        for t in range(times)
        for c in range(channels)
    )
    height, width = frames.shape[2:]
    pixels = (
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{width}" '
        f'SizeY="{height}" SizeC="{channels}" SizeZ="1" SizeT="{planned}" PhysicalSizeX="0.13" '
        f'PhysicalSizeY="0.13">{blocks}</Pixels></Image>'
    )
    summary = {
        "MicroManagerVersion": "2.0.0",
        "Prefix": "cells",
        "Frames": planned,
        "Channels": channels,
        "Slices": 1,
        "Positions": 1,
        "PixelSize_um": 0.13,
        "TimeFirst": False,
        "SlicesFirst": False,
    }
    for number, name in enumerate(names):
        times_here = range(number * per_file, min((number + 1) * per_file, times))
        where = [(c, 0, t, 0) for t in times_here for c in range(channels)]
        pointer = f'<BinaryOnly MetadataFile="{names[0]}" UUID="urn:uuid:0"/>'
        xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{number}">'
        images = np.stack([frames[t, c] for c, _, t, _ in where])
        text = f"{xml}{pointer if number else pixels}</OME>"
        stack_files.micro_manager_tiff(folder / name, images, where, summary, text)
    return [folder / name for name in names]


def test_any_file_of_a_micro_manager_set_gives_the_whole(tmp_path: Path) -> None:
    frames = RNG.integers(0, 4096, (5, 2, 12, 16)).astype("uint16")
    for path in micro_manager_set(tmp_path, frames, 2):
        stack = open_stack(path)
        assert stack.dims == ("t", "c", "y", "x") and stack.attrs["pixel_size_nm"] == pytest.approx(130)
        np.testing.assert_array_equal(stack, frames)
    np.testing.assert_array_equal(open_stack(tmp_path), frames)


def test_a_stopped_micro_manager_recording_has_the_frames_that_were_taken(tmp_path: Path) -> None:
    frames = RNG.integers(0, 4096, (5, 1, 12, 16)).astype("uint16")
    paths = micro_manager_set(tmp_path, frames, 2, planned=1000)
    np.testing.assert_array_equal(open_stack(paths[0]), frames[:, 0])


def test_each_file_of_several_positions_is_its_own_stack(tmp_path: Path) -> None:
    recordings = [movie(4), movie(4)]
    names = ["cells_Pos0.ome.tif", "cells_Pos1.ome.tif"]
    images = "".join(
        f'<Image ID="Image:{p}"><Pixels ID="Pixels:{p}" DimensionOrder="XYCZT" Type="uint16" SizeX="16" '
        f'SizeY="12" SizeC="1" SizeZ="1" SizeT="4"><Channel ID="Channel:{p}:0"/>'
        + "".join(
            f'<TiffData FirstT="{t}" IFD="{t}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{p}</UUID>'
            "</TiffData>"
            for t in range(4)
        )
        + "</Pixels></Image>"
        for p, name in enumerate(names)
    )
    for p, (name, frames) in enumerate(zip(names, recordings, strict=True)):
        head = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{p}">'
        text = f"{head}{images}</OME>"
        tifffile.imwrite(
            tmp_path / name, frames, photometric="minisblack", description=text.encode(), metadata=None
        )
    for name, frames in zip(names, recordings, strict=True):
        np.testing.assert_array_equal(open_stack(tmp_path / name), frames)
    (tmp_path / names[1]).unlink()
    np.testing.assert_array_equal(open_stack(tmp_path / names[0]), recordings[0])
    (tmp_path / names[0]).rename(tmp_path / "renamed.ome.tif")
    np.testing.assert_array_equal(open_stack(tmp_path / "renamed.ome.tif"), recordings[0])


def test_each_position_of_micro_manager_is_its_own_stack(tmp_path: Path) -> None:
    recordings = RNG.integers(0, 4096, (2, 3, 12, 16)).astype("uint16")
    sizes = {"Frames": 3, "Channels": 1, "Slices": 1, "Positions": 2}
    summary = {"MicroManagerVersion": "2.0.0", "Prefix": "cells", **sizes}
    xml = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"></OME>'
    for position, frames in enumerate(recordings):
        path = tmp_path / f"cells_MMStack_Pos{position}.ome.tif"
        where = [(0, 0, t, position) for t in range(3)]
        stack_files.micro_manager_tiff(path, frames, where, summary, xml)
    for position, frames in enumerate(recordings):
        np.testing.assert_array_equal(open_stack(tmp_path / f"cells_MMStack_Pos{position}.ome.tif"), frames)


# Zarr


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_arrays_are_read(tmp_path: Path, version: int) -> None:
    import zarr

    frames = movie(20)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=frames.shape, chunks=(3, 12, 16), dtype="uint16", zarr_format=version
    )
    array[:] = frames
    for source in (tmp_path / "a.zarr", zarr.open_array(tmp_path / "a.zarr", mode="r")):
        stack = open_stack(source)
        assert stack.dims == ("t", "y", "x")
        np.testing.assert_array_equal(stack, frames)
        np.testing.assert_array_equal(stack[4:15:3], frames[4:15:3])


@pytest.mark.parametrize(("version", "ngff"), [(2, "0.4"), (3, "0.5")])
def test_ngff_gives_full_resolution_and_its_scale(tmp_path: Path, version: int, ngff: str) -> None:
    import zarr

    stack = hyperstack(t=2, c=2, z=3, y=16, x=20)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    for level, step in (("full", 1), ("half", 2)):
        values = stack.to_numpy()[..., ::step, ::step]
        group.create_array(level, data=values, dimension_names=None)
    image = {
        "version": ngff,
        "axes": [
            {"name": "t", "type": "time"},
            {"name": "c", "type": "channel"},
            *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"),
        ],
        "datasets": [
            {
                "path": "full",
                "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 0.3, 0.11, 0.11]}],
            },
            {
                "path": "half",
                "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 0.3, 0.22, 0.22]}],
            },
        ],
    }
    if ngff == "0.5":
        group.attrs["ome"] = {"multiscales": [image]}
    else:
        group.attrs["multiscales"] = [image]
    for source in (tmp_path / "a.zarr", group):
        opened = open_stack(source)
        assert opened.attrs["pixel_size_nm"] == 110.0
        np.testing.assert_array_equal(opened, stack)


def test_what_is_written_to_zarr_is_ngff(tmp_path: Path) -> None:
    import zarr

    write_stack(hyperstack(t=2, c=2, y=16, x=20), tmp_path / "a.zarr")
    (image,) = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["t", "c", "y", "x"]
    assert image["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1, 1, 106.7, 106.7]}
    ]
    assert {axis.get("unit") for axis in image["axes"]} == {None, "nanometer"}


def test_a_zarr_group_of_several_arrays_is_refused(tmp_path: Path) -> None:
    import zarr

    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("raw", data=movie())
    group.create_array("mask", data=movie())
    assert "mask, raw" in refusal(tmp_path / "a.zarr")
    np.testing.assert_array_equal(open_stack(tmp_path / "a.zarr" / "raw"), group["raw"][:])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("version", ["ours", 2, 3])
def test_a_zarr_chunk_cut_off_is_told(tmp_path: Path, version: str | int, share: float) -> None:
    import zarr

    path = tmp_path / "a.zarr"
    if version == "ours":
        write_stack(open_stack(movie(50, 64, 64)), path)
    else:
        blosc = {2: "auto", 3: zarr.codecs.BloscCodec()}[version]
        array = zarr.create_array(
            path,
            shape=(50, 64, 64),
            chunks=(20, 64, 64),
            dtype="uint16",
            zarr_format=version,
            compressors=blosc,
        )
        array[:] = movie(50, 64, 64)
    chunk = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    os.truncate(chunk, int(share * chunk.stat().st_size))
    assert "a.zarr" in refusal(path)


# Formats of microscopes and cameras


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32"])
def test_spe_2_is_read(tmp_path: Path, dtype: str) -> None:
    frames = movie(dtype=dtype)
    stack_files.spe2(tmp_path / "a.SPE", frames)
    stack = open_stack(tmp_path / "a.SPE")
    assert stack.dtype == dtype
    np.testing.assert_array_equal(stack, frames)


def test_spe_3_is_read_past_the_metadata_of_each_frame(tmp_path: Path) -> None:
    frames = movie()
    stack_files.spe3(tmp_path / "a.spe", frames, "MonochromeUnsigned16", metadata_bytes=24)
    np.testing.assert_array_equal(open_stack(tmp_path / "a.spe"), frames)


@pytest.mark.parametrize("version", [2, 3])
def test_a_truncated_spe_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.spe"
    if version == 2:
        stack_files.spe2(path, movie())
    else:
        stack_files.spe3(path, movie(), "MonochromeUnsigned16", 0)
    path.write_bytes(path.read_bytes()[: 4100 + 1000])
    assert "a.spe is truncated" in refusal(path)


def test_nd2_is_read(tmp_path: Path) -> None:
    pytest.importorskip("nd2")
    frames = RNG.integers(0, 4096, (4, 2, 12, 16)).astype("uint16")
    stack_files.nd2(tmp_path / "a.nd2", frames, 0.11)
    stack = open_stack(tmp_path / "a.nd2")
    assert stack.dims == ("t", "c", "y", "x") and stack.attrs["pixel_size_nm"] == 110.0
    np.testing.assert_array_equal(stack, frames)
    stack_files.nd2(tmp_path / "b.nd2", frames[:, :1], 0.11, recorded=3)
    np.testing.assert_array_equal(open_stack(tmp_path / "b.nd2"), frames[:3, 0])
    (tmp_path / "c.nd2").write_bytes((tmp_path / "a.nd2").read_bytes()[:9000])
    assert "c.nd2" in refusal(tmp_path / "c.nd2")


def test_czi_is_read(tmp_path: Path) -> None:
    pytest.importorskip("czifile")
    values = hyperstack(t=3, c=2, z=2, y=12, x=16)
    stack_files.czi(tmp_path / "a.czi", values.to_numpy(), pixel_size_nm=65.0)
    stack = open_stack(tmp_path / "a.czi")
    assert stack.attrs["pixel_size_nm"] == 65.0
    np.testing.assert_array_equal(stack, values)
    (tmp_path / "b.czi").write_bytes((tmp_path / "a.czi").read_bytes()[:3000])
    assert "b.czi" in refusal(tmp_path / "b.czi")


@pytest.mark.parametrize(
    ("name", "head", "package"),
    [
        ("a.nd2", b"\xda\xce\xbe\x0a", "nd2"),
        ("a.czi", b"ZISRAWFILE", "czifile"),
    ],
)
def test_without_the_extra_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: bytes, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(head.ljust(100, b"\0"))
    assert 'pip install "fiji-bridge[formats]"' in refusal(tmp_path / name)


# Lazy


def test_only_the_frames_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", movie(100), photometric="minisblack", compression="zlib")
    numbers = frames_read(monkeypatch)
    stack = open_stack(tmp_path / "a.tif")
    assert numbers == []
    stack[40:43].to_numpy()
    assert sorted(numbers) == [40, 41, 42]
    numbers.clear()
    stack[::30].to_numpy()
    assert sorted(numbers) == [0, 30, 60, 90]


def test_a_look_at_frames_spread_over_a_movie_reads_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = movie(500)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack", compression="zlib")
    numbers = frames_read(monkeypatch)
    stack = open_stack(tmp_path / "a.tif")
    for look, most in ((defective, 100), (sample_frames, 50)):
        look(stack)
        assert len(numbers) == len(set(numbers)) == most
        assert max(np.diff(sorted(numbers))) < 1.1 * 2 * 500 / most
        numbers.clear()
    chosen = np.array([3, 4, 499])
    np.testing.assert_array_equal(some_frames(stack, chosen, x=slice(1, 9)), frames[chosen, :, 1:9])


def test_only_the_channel_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stack(hyperstack(t=20, c=2, z=2, y=8, x=8), tmp_path / "a.tif")
    numbers = frames_read(monkeypatch)
    stacks = {tuple(where.values()): stack for where, stack in positions(open_stack(tmp_path / "a.tif"))}
    assert next(frame_blocks(stacks[1, 0], 3))[1].shape == (3, 8, 8)
    assert sorted(numbers) == [1, 5, 9]  # pages are t, z, c with c fastest


def test_slices_taken_for_a_movie_are_read_lazily_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", movie(100), imagej=True, metadata={"axes": "ZYX"})
    numbers = frames_read(monkeypatch)
    open_stack(tmp_path / "a.tif")[7:9].to_numpy()
    assert sorted(numbers) == [7, 8]


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory through the module resource")
def test_a_large_stack_never_stands_in_memory_whole(tmp_path: Path) -> None:
    frames, side = 600, 512
    tifffile.memmap(tmp_path / "a.tif", shape=(frames, side, side), dtype="uint16", photometric="minisblack")
    script = """
import resource, sys
from fiji_bridge.stack import StackWriter, frame_blocks, open_stack
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
stack = open_stack(sys.argv[1])
stack[0].to_numpy()
before = peak()
with StackWriter(sys.argv[2], stack, "uint16") as writer:
    for first, block in frame_blocks(stack, 16):
        writer.write(first, block)
print(peak() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.tif", tmp_path / "b.tif"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 80e6 < frames * side * side * 2
    assert (tmp_path / "b.tif").stat().st_size > frames * side * side * 2


def test_blocks_have_every_frame_once() -> None:
    frames = movie(10)
    blocks = list(frame_blocks(open_stack(frames), 4))
    assert [first for first, _ in blocks] == [0, 4, 8]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), frames)
    assert "positions" in refusal_of_blocks(open_stack(hyperstack(t=2, c=2, y=8, x=8)))


def refusal_of_blocks(stack: xr.DataArray) -> str:
    with pytest.raises(FijiBridgeError) as error:
        list(frame_blocks(stack))
    return str(error.value)


# Writing


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
@pytest.mark.parametrize("name", ["a.tif", "a.tiff", "a.ome.tif", "a.zarr"])
def test_every_dtype_survives_every_format(tmp_path: Path, name: str, dtype: str) -> None:
    frames = movie(5, 11, 13, dtype)
    write_stack(open_stack(frames, pixel_size_nm=160), tmp_path / name)
    stack = open_stack(tmp_path / name)
    assert stack.dtype == dtype and stack.attrs["pixel_size_nm"] == pytest.approx(160)
    assert stack.attrs["axes_from_file"] == "TYX"
    np.testing.assert_array_equal(stack, frames)


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.zarr"])
@pytest.mark.parametrize("sizes", [{"c": 2}, {"c": 2, "z": 3}, {"t": 4, "z": 3}, {"t": 4, "c": 2}], ids=str)
def test_every_shape_of_hyperstack_survives(tmp_path: Path, name: str, sizes: dict[str, int]) -> None:
    stack = open_stack(hyperstack(**sizes, y=9, x=8))
    write_stack(stack, tmp_path / name)
    xr.testing.assert_equal(open_stack(tmp_path / name), stack)


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.zarr"])
def test_one_frame_and_an_unknown_pixel_size_survive(tmp_path: Path, name: str) -> None:
    write_stack(open_stack(movie(1)), tmp_path / name)
    stack = open_stack(tmp_path / name)
    assert stack.sizes["t"] == 1 and stack.attrs["pixel_size_nm"] is None


def test_denoised_floats_are_rounded_and_clipped_into_integers(tmp_path: Path) -> None:
    like = open_stack(movie(1, 2, 2))
    with StackWriter(tmp_path / "a.tif", like, "uint16") as writer:
        writer.write(0, np.array([[[-3.2, 1.5], [2.4, 70000.0]]]))
    np.testing.assert_array_equal(open_stack(tmp_path / "a.tif")[0], [[0, 2], [2, 65535]])


def test_large_floats_do_not_change_sign_in_32_bit_integers(tmp_path: Path) -> None:
    with StackWriter(tmp_path / "a.tif", open_stack(movie(1, 2, 2)), "int32") as writer:
        writer.write(0, np.array([[[3e9, -3e9], [7.6, 0]]], "float32"))
    np.testing.assert_array_equal(open_stack(tmp_path / "a.tif")[0], [[2**31 - 1, -(2**31)], [8, 0]])


def test_beyond_4_gb_a_tif_is_bigtiff(tmp_path: Path) -> None:
    shape = (17000, 256, 256)
    import dask.array as da

    like = open_stack(
        xr.DataArray(da.zeros(shape, dtype="float32", chunks=(64, 256, 256)), dims=("t", "y", "x"))
    )
    from fiji_bridge import stack_writer

    # laid out, with no space taken, so that the test writes only a few frames
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack_writer, "_reserve", lambda *_: None)
        with StackWriter(tmp_path / "a.tif", like) as writer:
            writer.write(16999, np.full((1, 256, 256), 7.0))
            writer._written[:] = True
    stack = open_stack(tmp_path / "a.tif")
    assert stack.shape == shape and (tmp_path / "a.tif").stat().st_size > 2**32
    assert tifffile.TiffFile(tmp_path / "a.tif").is_bigtiff
    np.testing.assert_array_equal(stack[16999, :2, :2], 7.0)
    np.testing.assert_array_equal(stack[16998, :2, :2], 0.0)


@pytest.mark.filterwarnings("ignore:.*truncating ImageJ file")
def test_an_imagej_stack_beyond_4_gb_has_one_page_and_all_frames(tmp_path: Path) -> None:
    shape = (33000, 256, 256)
    with tifffile.TiffWriter(tmp_path / "a.tif", imagej=True) as writer:
        offset, _ = writer.write(shape=shape, dtype="uint16", metadata={"axes": "TYX"}, returnoffset=True)
        order = writer.tiff.byteorder
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(offset + 32999 * 256 * 256 * 2)
        file.write(np.full(4, 9, f"{order}u2").tobytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert len(tif.pages) == 1
    stack = open_stack(tmp_path / "a.tif")
    assert stack.shape == shape
    np.testing.assert_array_equal(stack[32999, 0, :5], [9, 9, 9, 9, 0])


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.zarr"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_interrupted_leaves_the_old_file_and_no_other(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    frames = movie()
    write_stack(open_stack(frames), tmp_path / name)
    with pytest.raises(error), StackWriter(tmp_path / name, open_stack(frames)) as writer:
        writer.write(0, frames[:2])
        raise error
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(open_stack(tmp_path / name), frames)
    write_stack(open_stack(frames + 1), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(open_stack(tmp_path / name), frames + 1)


def test_a_file_with_frames_missing_does_not_appear(tmp_path: Path) -> None:
    stack = open_stack(hyperstack(t=4, c=2, y=8, x=8))
    missing = pytest.raises(FijiBridgeError, match=r"a\.tif was not written: 4 of 8")
    with missing, StackWriter(tmp_path / "a.tif", stack) as writer:
        writer.write(0, stack[:, 0].to_numpy(), c=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.tif", "a.zarr"])
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    stack = open_stack(hyperstack(t=4, c=2, y=8, x=8))
    block = np.zeros((2, 8, 8))
    for start, values, where in [
        (3, block, {"c": 0}),
        (-1, block, {"c": 0}),
        (0, block[:, :7], {"c": 0}),
        (0, block[0], {"c": 0}),
        (0, block, {"c": 2}),
        (0, block, {}),
        (0, block, {"c": 0, "z": 0}),
    ]:
        with pytest.raises(FijiBridgeError, match=name), StackWriter(tmp_path / name, stack) as writer:
            writer.write(start, values, **where)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs a limit on file size")
@pytest.mark.parametrize(("name", "reserving"), [("a.tif", True), ("a.tif", False), ("a.zarr", False)])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, name: str, reserving: bool) -> None:
    script = f"""
import os, resource, sys
import numpy as np
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack import open_stack, write_stack
if not {reserving}:
    del os.posix_fallocate
stack = open_stack(np.random.default_rng(0).integers(0, 9999, (64, 128, 128)).astype("uint16"))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
try:
    write_stack(stack, sys.argv[1])
except FijiBridgeError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path / name], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"Could not write {tmp_path / name}: {os.strerror(errno.EFBIG)}")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_stays(tmp_path: Path) -> None:
    for name in ("a.tif", "a.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("precious")
        with pytest.raises(FijiBridgeError, match="is a folder"):
            write_stack(open_stack(movie()), tmp_path / name)
        assert (tmp_path / name / "thesis.txt").read_text() == "precious"


def test_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FijiBridgeError, match=r"a\.avi"):
        write_stack(open_stack(movie()), tmp_path / "a.avi")
    with pytest.raises(FijiBridgeError, match="complex64"):
        StackWriter(tmp_path / "a.tif", open_stack(movie()), "complex64")


def test_writing_tells_its_progress_and_can_be_cancelled_by_it(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    stack = hyperstack(t=4, c=2, y=8, x=8)
    write_stack(stack, tmp_path / "a.tif", progress=lambda _, done, total: told.append((done, total)))
    assert told == [(4, 8), (8, 8)]

    def cancel(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stack(stack, tmp_path / "b.tif", progress=cancel)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


# Bad input: one sentence that names the file


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    assert "nothing.tif: No such file" in refusal(tmp_path / "nothing.tif")
    assert "nothing.zarr" in refusal(tmp_path / "nothing.zarr")
    (tmp_path / "zero.tif").touch()
    assert "zero.tif is an empty file" in refusal(tmp_path / "zero.tif")
    (tmp_path / "words.tif").write_text("this is not an image, whatever its name says")
    assert "words.tif is not an image" in refusal(tmp_path / "words.tif")
    (tmp_path / "empty").mkdir()
    assert "empty has no images in it" in refusal(tmp_path / "empty")
    assert "No file" in refusal([])


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"ome": True, "metadata": {"axes": "TYX"}},
        {"bigtiff": True},
        {"metadata": None},
        {"compression": "zlib"},
        {"compression": "zlib", "ome": True, "metadata": {"axes": "TYX"}},
        {"compression": "zlib", "metadata": None},
    ],
    ids=str,
)
def test_a_tiff_cut_off_is_refused_unless_all_its_frames_are_there(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "a.tif"
    frames = RNG.integers(0, 65536, (20, 32, 32)).astype("uint16")
    tifffile.imwrite(path, frames, photometric="minisblack", **options)
    whole = path.read_bytes()
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        path.write_bytes(whole[: int(share * len(whole))])
        try:
            read = open_stack(path).to_numpy()
        except FijiBridgeError as error:
            assert "a.tif" in str(error)
        else:  # ImageJ needs none of the pages behind the pixels
            assert share > 0.8 and options.get("imagej")
            np.testing.assert_array_equal(read, frames)


def test_a_real_recording_cut_off_is_refused_when_opened(tmp_path: Path, shared_data: Path) -> None:
    whole = (shared_data / "thunderstorm_reference" / "default" / "stack.tif").read_bytes()
    for share in (0.001, 0.2, 0.6, 0.99):
        (tmp_path / "stack.tif").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FijiBridgeError, match=r"stack\.tif"):
            open_stack(tmp_path / "stack.tif")


def test_a_frame_damaged_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, movie(), photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[3].dataoffsets[0]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 20)
    assert open_stack(path)[2].to_numpy().shape == (12, 16)
    assert "a.tif: image 4 cannot be read" in refusal(path)


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, movie(), photometric="minisblack")
    stack = open_stack(path)
    os.truncate(path, path.stat().st_size // 2)
    assert "image" in refusal_of_blocks(stack)
    path.unlink()
    assert "No such file" in refusal_of_blocks(stack)


def test_a_png_cut_off_is_refused(tmp_path: Path, shared_data: Path) -> None:
    whole = (shared_data / "fmdd_bpae_50" / "gt" / "1" / "avg50.png").read_bytes()
    for share in (0.0002, 0.5, 0.999):
        (tmp_path / "a.png").write_bytes(whole[: int(share * len(whole))])
        assert "a.png is truncated" in refusal(tmp_path / "a.png")


def test_colour_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((5, 12, 16, 3), "uint8"), photometric="rgb")
    assert "rgb.tif is a colour image (RGB)" in refusal(tmp_path / "rgb.tif")
    tifffile.imwrite(tmp_path / "rgba.tif", np.zeros((12, 16, 4), "uint8"), photometric="rgb")
    assert "colour" in refusal(tmp_path / "rgba.tif")
    tifffile.imwrite(tmp_path / "ij.tif", np.zeros((5, 12, 16, 3), "uint8"), imagej=True, photometric="rgb")
    assert "colour" in refusal(tmp_path / "ij.tif")
    tifffile.imwrite(
        tmp_path / "palette.tif",
        np.zeros((12, 16), "uint8"),
        photometric="palette",
        colormap=np.zeros((3, 256), "u2"),
    )
    assert "Lookup Tables > Grays" in refusal(tmp_path / "palette.tif")
    for mode in ("RGB", "RGBA", "LA", "P"):
        Image.new(mode, (16, 12)).save(tmp_path / f"{mode}.png")
        assert f"{mode}.png is a colour image" in refusal(tmp_path / f"{mode}.png")


def test_images_too_small_to_be_images_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((1, 1), "uint16"))
    assert "a.tif is too small: its frames are 1 × 1 pixels" in refusal(tmp_path / "a.tif")
    assert "too small" in refusal(np.zeros((5, 1, 30)))


@pytest.mark.parametrize("shape", [(0, 12, 16), (3, 0, 16), (0, 0)])
def test_empty_arrays_are_refused(shape: tuple[int, ...]) -> None:
    assert "empty" in refusal(np.zeros(shape))
    assert "empty" in refusal(xr.DataArray(np.zeros(shape), dims=("t", "y", "x")[-len(shape) :]))


@pytest.mark.parametrize("dtype", ["complex64", "bool", "uint64", "float16", "U3"])
def test_other_pixel_types_are_refused(tmp_path: Path, dtype: str) -> None:
    frames = np.zeros((2, 12, 16), dtype)
    assert "pixels of the type" in refusal(frames)
    assert "pixels of the type" in refusal(xr.DataArray(frames, dims=("t", "y", "x")))
    if dtype != "U3":
        tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack")
        assert "a.tif has pixels of the type" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_with_their_frame(tmp_path: Path, value: float) -> None:
    frames = movie(9, dtype="float32")
    frames[6, 3, 4] = value
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack")
    assert "a.tif has NaN or infinite values in frame 7" in refusal(tmp_path / "a.tif")


def test_arrays_with_dims_that_mean_nothing_are_refused() -> None:
    assert "4 dimensions" in refusal(np.zeros((2, 2, 12, 16)))
    assert "1 dimensions" in refusal(np.zeros(12))
    assert "time" in refusal(xr.DataArray(movie(), dims=("time", "y", "x")))
    assert "dims t, y" in refusal(xr.DataArray(movie()[0], dims=("t", "y")))


@pytest.mark.parametrize("size", [0.0, -100.0, "100 nm", np.nan])
def test_a_data_array_with_an_impossible_pixel_size_is_refused(size: object) -> None:
    assert "pixel size" in refusal(xr.DataArray(movie(), dims=("t", "y", "x"), attrs={"pixel_size_nm": size}))


def test_several_images_in_one_file_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(movie(3), photometric="minisblack", metadata={"axes": "TYX"})
        writer.write(movie(4, 30, 30), photometric="minisblack", metadata={"axes": "TYX"})
    assert "a.ome.tif holds 2 separate images" in refusal(tmp_path / "a.ome.tif")
