"""Small files of formats laid out as their specifications say."""

import json
import struct
from pathlib import Path

import numpy as np
import tifffile


def micro_manager_tiff(
    path: Path, frames: np.ndarray, where: list[tuple[int, int, int, int]], summary: dict, ome_xml: str
) -> None:
    """Write frames (n, y, x) as Micro-Manager does: an index map, and each image 162 bytes after its page.

    `where` has the channel, slice, frame and position of each.
    """
    text = json.dumps(summary).encode()
    descriptions = ome_xml.encode() + b"\0"
    body = bytearray(struct.pack("<2sHI", b"II", 42, 40 + len(text)))
    body += struct.pack("<IIIIIIII", 54773648, 0, 483765892, 0, 99384722, 0, 2355492, len(text)) + text
    height, width = frames.shape[1:]
    offsets = []
    for number, frame in enumerate(frames):
        start = len(body)
        offsets.append(start)
        first = number == 0
        pixels = start + 2 + (14 if first else 13) * 12 + 4
        extra = pixels + frame.nbytes
        end = extra + (len(descriptions) if first else 0) + 8
        tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1)]
        tags += [(270, 2, len(descriptions), extra)] if first else []
        tags += [(273, 4, 1, pixels), (277, 3, 1, 1), (278, 3, 1, height), (279, 4, 1, frame.nbytes)]
        tags += [(282, 5, 1, end - 8), (283, 5, 1, end - 8), (296, 3, 1, 1), (51123, 2, 3, 0x007D7B)]
        body += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        body += struct.pack("<I", 0 if number == len(frames) - 1 else end)
        body += frame.astype("<u2").tobytes() + (descriptions if first else b"") + struct.pack("<II", 1, 1)
    struct.pack_into("<I", body, 12, len(body))
    body += struct.pack("<II", 3453623, len(frames))
    for place, offset in zip(where, offsets, strict=True):
        body += struct.pack("<IIIII", *place, offset)
    path.write_bytes(bytes(body))


def spe2(path: Path, frames: np.ndarray) -> None:
    """Write frames (n, y, x) as SPE 2.x: everything is in the header."""
    path.write_bytes(_spe_header(frames, 2.5, 0) + frames.tobytes())


def spe3(path: Path, frames: np.ndarray, pixel_format: str, metadata_bytes: int) -> None:
    """Write frames (n, y, x) as SPE 3.0: each followed by metadata, and described in XML at the end."""
    count, height, width = frames.shape
    size = frames[0].nbytes
    body = b"".join(frame.tobytes() + b"\xff" * metadata_bytes for frame in frames)
    footer = (
        '<SpeFormat version="3.0" xmlns="http://www.princetoninstruments.com/spe/2009"><DataFormat>'
        f'<DataBlock type="Frame" count="{count}" pixelFormat="{pixel_format}" size="{size}" '
        f'stride="{size + metadata_bytes}"><DataBlock type="Region" count="1" width="{width}" '
        f'height="{height}" size="{size}" stride="{size}"/></DataBlock></DataFormat></SpeFormat>'
    )
    path.write_bytes(_spe_header(frames, 3.0, 4100 + len(body)) + body + footer.encode())


def _spe_header(frames: np.ndarray, version: float, footer: int) -> bytes:
    kinds = {"float32": 0, "int32": 1, "int16": 2, "uint16": 3, "uint8": 6, "uint32": 8}
    header = bytearray(4100)
    struct.pack_into("<H", header, 42, frames.shape[2])
    struct.pack_into("<H", header, 656, frames.shape[1])
    struct.pack_into("<h", header, 108, kinds[frames.dtype.name])
    struct.pack_into("<i", header, 1446, len(frames))
    struct.pack_into("<f", header, 1992, version)
    struct.pack_into("<Q", header, 678, footer)
    return bytes(header)


def czi(path: Path, stack: np.ndarray, pixel_size_nm: float) -> None:
    """Write a stack (t, c, z, y, x) of 16-bit images as CZI, a subblock an image."""
    metre = pixel_size_nm / 1e9
    scaling = "".join(f'<Distance Id="{axis}"><Value>{metre}</Value></Distance>' for axis in "XY")
    text = f"<Metadata><Scaling><Items>{scaling}</Items></Scaling></Metadata>"
    xml = f"<ImageDocument>{text}</ImageDocument>".encode()
    segments = [("ZISRAWMETADATA", struct.pack("<ii248x", len(xml), 0) + xml)]
    position = 32 + 512 + 32 + len(segments[0][1])
    entries = []
    for t, c, z in np.ndindex(stack.shape[:3]):
        image = stack[t, c, z]
        places = {"X": (0, image.shape[1]), "Y": (0, image.shape[0]), "C": (c, 1), "Z": (z, 1), "T": (t, 1)}
        dims = b"".join(
            struct.pack("<4siifi", axis.encode(), start, size, 0.0, size)
            for axis, (start, size) in places.items()
        )
        entry = struct.pack("<2siqiiBB4si", b"DV", 1, position, 0, 0, 0, 0, b"", len(places)) + dims
        entries.append(entry)
        padding = b"\0" * max(240 - len(entry), 0)
        data = struct.pack("<iiq", 0, 0, image.nbytes) + entry + padding + image.astype("<u2").tobytes()
        segments.append(("ZISRAWSUBBLOCK", data))
        position += 32 + len(data)
    segments.append(("ZISRAWDIRECTORY", struct.pack("<i124x", len(entries)) + b"".join(entries)))
    header = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, b"", b"", 0, position, 32 + 512, 0, 0).ljust(
        512, b"\0"
    )
    with path.open("wb") as file:
        for name, data in [("ZISRAWFILE", header), *segments]:
            file.write(struct.pack("<16sqq", name.encode(), len(data), len(data)) + data)


def nd2(path: Path, stack: np.ndarray, pixel_size_um: float, recorded: int | None = None) -> None:
    """Write a movie (t, c, y, x) of 16-bit images as ND2 3.0, of which `recorded` frames were made."""
    frames, channels, height, width = stack.shape
    recorded = frames if recorded is None else recorded
    attributes = {
        "uiWidth": width,
        "uiWidthBytes": width * channels * 2,
        "uiHeight": height,
        "uiComp": channels,
        "uiBpcInMemory": 16,
        "uiBpcSignificant": 16,
        "uiSequenceCount": recorded,
    }
    probe = {"m_ExcitationSpectrum": {"uiCount": 0}, "m_EmissionSpectrum": {"uiCount": 0}}
    planes = {f"a{number}": {"uiCompCount": 1, "pFluorescentProbe": probe} for number in range(channels)}
    metadata = {
        "bCalibrated": True,
        "dCalibration": pixel_size_um,
        "sPicturePlanes": {"uiCount": channels, "uiCompCount": channels, "sPlaneNew": planes},
    }
    loop = {
        "eType": 1,
        "uLoopPars": {"uiCount": frames, "dStart": 0.0, "dPeriod": 10.0, "dDuration": 0.0},
        "uiLevel": 0,
    }
    chunks = {
        "ImageAttributesLV!": _lite({"SLxImageAttributes": attributes}),
        "ImageMetadataSeqLV|0!": _lite({"SLxPictureMetadata": metadata}),
        "ImageMetadataLV!": _lite({"SLxExperiment": loop}),
    }
    for number in range(recorded):
        # channels are interleaved pixel by pixel, after a time stamp
        pixels = np.moveaxis(stack[number], 0, -1).astype("<u2").tobytes()
        chunks[f"ImageDataSeq|{number}!"] = struct.pack("<d", 0.0) + pixels
    body = bytearray(_nd2_chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"), 32))
    body = body.ljust(4096, b"\0")
    index = b""
    for name, data in chunks.items():
        index += name.encode() + struct.pack("<QQ", len(body), len(data))
        body += _nd2_chunk(name.encode(), data, 4096 - 16 - 8 if name.startswith("ImageDataSeq") else 64)
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(body))
    body += _nd2_chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", index + end, 32)
    path.write_bytes(bytes(body))


def _nd2_chunk(name: bytes, data: bytes, name_bytes: int) -> bytes:
    return struct.pack("<IIQ", 0x0ABECEDA, name_bytes, len(data)) + name.ljust(name_bytes, b"\0") + data


def _lite(values: dict) -> bytes:
    """Encode nested values as ND2's "lite variant": a type, a name in UTF-16 and the value."""
    out = b""
    for key, value in values.items():
        name = (key + "\0").encode("utf-16-le")
        kind = {bool: 1, int: 3, float: 6, str: 8, dict: 11}[type(value)]
        head = struct.pack("BB", kind, len(key) + 1) + name
        if kind == 11:
            inner = _lite(value)
            out += (
                head
                + struct.pack("<IQ", len(value), len(head) + 12 + len(inner))
                + inner
                + bytes(8 * len(value))
            )
        elif kind == 8:
            out += head + (value + "\0").encode("utf-16-le")
        else:
            out += head + struct.pack({1: "<B", 3: "<I", 6: "<d"}[kind], value)
    return out


def ome_set(
    folder: Path, frames: np.ndarray, per_file: int, planned: int | None = None, master: bool = False
) -> list[Path]:
    """Write an OME-TIFF set; with `master` the first file has the description and the others point to it."""
    count = -(-len(frames) // per_file)
    names = [f"cells_{number}.ome.tif" for number in range(count)]
    blocks = "".join(
        f'<TiffData FirstT="{t}" FirstC="0" FirstZ="0" IFD="{t % per_file}" PlaneCount="1">'
        f'<UUID FileName="{names[t // per_file]}">urn:uuid:{t // per_file}</UUID></TiffData>'
        for t in range(len(frames))
    )
    height, width = frames.shape[1:]
    for number, name in enumerate(names):
        head = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{number}">'
        pixels = (
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{width}" '
            f'SizeY="{height}" SizeC="1" SizeZ="1" SizeT="{planned or len(frames)}" PhysicalSizeX="0.1" '
            f'PhysicalSizeXUnit="µm"><Channel ID="Channel:0:0"/>{blocks}</Pixels></Image>'
        )
        pointer = f'<BinaryOnly MetadataFile="{names[0]}" UUID="urn:uuid:0"/>'
        text = f"{head}{pointer if master and number else pixels}</OME>"
        tifffile.imwrite(
            folder / name,
            frames[number * per_file : (number + 1) * per_file],
            photometric="minisblack",
            description=text.encode(),
            metadata=None,
        )
    return [folder / name for name in names]
