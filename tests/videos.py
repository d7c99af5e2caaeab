"""Writers of awkward videos: each returns the path of a small file with one thing that trips decoders up."""

import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

H264 = {"preset": "ultrafast", "crf": "18"}


def pictures(count: int, height: int = 48, width: int = 64) -> Tensor:
    """Frames (t h w 3) that all differ: a drifting ramp, and the frame number in 8 blocks."""
    rows = torch.arange(height).view(1, -1, 1, 1)
    cols = torch.arange(width).view(1, 1, -1, 1)
    time = torch.arange(count).view(-1, 1, 1, 1)
    ramp = (rows * 2 + cols + time * 3 + torch.tensor([0, 40, 80])) % 200 + 20
    bit = (time >> (cols * 8 // width).clamp(max=7)) & 1
    return torch.where(rows < height // 3, bit * 200 + 20, ramp).to(torch.uint8)


def encode(
    path: Path,
    frames: Tensor,
    *,
    codec: str = "libx264",
    fps: int = 25,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    gop: int = 12,
    bframes: int = 0,
    muxer: dict[str, str] | None = None,
    shift: int = 0,
    drop: Sequence[int] = (),
) -> Path:
    """Write frames with PyAV; `times` in 1/fps, `shift` moves every packet, `drop` leaves packets out."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=H264 if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, bframes
        stream.codec_context.options = {**stream.codec_context.options, **(options or {})}
        stream.codec_context.time_base = Fraction(1, fps)
        packets = []
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")
            picture.pts = times[number] if times else number
            picture.time_base = Fraction(1, fps)
            packets += stream.encode(picture)
        packets += stream.encode(None)
        for number, packet in enumerate(packets):
            if number in drop:
                continue
            move = round(shift / fps / packet.time_base)
            packet.pts, packet.dts = packet.pts + move, packet.dts + move
            container.mux(packet)
    return path


def constant(folder: Path) -> Path:
    return encode(folder / "constant.mp4", pictures(40))


def constant_b(folder: Path) -> Path:
    return encode(folder / "constant_b.mp4", pictures(40), bframes=3)


def variable(folder: Path) -> Path:
    times = [n + n // 3 * 4 + (n > 20) * 50 for n in range(40)]
    return encode(folder / "variable.mp4", pictures(40), times=times, bframes=2)


def webm(folder: Path) -> Path:
    return encode(
        folder / "web.webm",
        pictures(30),
        codec="libvpx-vp9",
        options={"cpu-used": "8", "deadline": "realtime"},
    )


def edit_list(folder: Path) -> Path:
    """An mp4 whose edit list hides the first 17 of 50 frames: packets are there, and must not be shown."""
    muxer = {"avoid_negative_ts": "disabled"}
    return encode(folder / "edit.mp4", pictures(50), bframes=2, shift=-17, muxer=muxer)


def avi_b(folder: Path) -> Path:
    """MPEG-4 with B-frames in AVI: packets carry no presentation time."""
    return encode(folder / "b.avi", pictures(40), codec="mpeg4", bframes=2)


def avi_gaps(folder: Path) -> Path:
    """AVI has no time stamps: the muxer fills gaps with empty packets, which are no frames."""
    return encode(folder / "gaps.avi", pictures(30), codec="mpeg4", times=[n + n // 7 * 5 for n in range(30)])


def avi_h264(folder: Path) -> Path:
    """H.264 with B-frames in AVI: the presentation times that FFmpeg guesses are wrong."""
    return encode(folder / "h264.avi", pictures(40), bframes=2)


def avi_packed(folder: Path) -> Path:
    """A DivX "packed bitstream": B-frames travel in the packet of another frame, and leave a placeholder."""
    plain = encode(folder / "plain.avi", pictures(40), codec="mpeg4", bframes=1)
    packets = [(re.sub(rb"Lavc[\d.]+", b"DivX503b1393p", data), key) for data, key in packets_of(plain)]
    placeholder = bytes.fromhex("000001b6") + 0b0101000001001111.to_bytes(2, "big")
    packed = []
    for number, (data, key) in enumerate(packets):
        following = packets[number + 1][0] if number + 1 < len(packets) else b""
        if is_b_frame(data):
            packed.append((placeholder, False))
        else:
            packed.append((data + following if is_b_frame(following) else data, key))
    return remux(plain, folder / "packed.avi", packed)


def is_b_frame(data: bytes) -> bool:
    start = data.find(b"\0\0\1\xb6")
    return start >= 0 and data[start + 4] >> 6 == 2


def vp8_hidden(folder: Path) -> Path:
    """VP8 with frames that are only referred to (as YouTube's old WebM files): packets which show nothing."""
    plain = encode(folder / "plain.webm", pictures(40), codec="libvpx", options={"cpu-used": "8"})
    packets = [
        (bytes([data[0] & ~0x10]) + data[1:] if number in (7, 20) else data, key)
        for number, (data, key) in enumerate(packets_of(plain))
    ]
    return remux(plain, folder / "hidden.webm", packets)


def hevc_cut(folder: Path) -> Path:
    """HEVC cut at an open keyframe: the pictures shown before it cannot be decoded."""
    params = "open-gop=1:keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0:log-level=none"
    options = {"preset": "ultrafast", "x265-params": params}
    return encode(folder / "hevc.mkv", pictures(50), codec="libx265", options=options, gop=10, drop=range(9))


def repeated_times(folder: Path) -> Path:
    """Two packets of one presentation time."""
    path = encode(folder / "even.webm", pictures(30), codec="libvpx", options={"cpu-used": "8"})
    packets = packets_of(path)
    return remux(path, folder / "repeated.webm", packets, times=[n - (n == 9) for n in range(len(packets))])


def packets_of(path: Path) -> list[tuple[bytes, bool]]:
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


def remux(
    source: Path, target: Path, packets: list[tuple[bytes, bool]], times: Sequence[int] | None = None
) -> Path:
    """Write other packets under the headers of an existing file; `times` in frames."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        rate = old.streams.video[0].average_rate
        for number, (data, key) in enumerate(packets):
            packet = av.Packet(data)
            packet.time_base = 1 / Fraction(rate)
            packet.pts = packet.dts = times[number] if times else number
            packet.stream, packet.is_keyframe = stream, key
            new.mux(packet)
    return target


def open_gop(folder: Path) -> Path:
    options = {"x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0:bframes=3:b-adapt=0"}
    return encode(folder / "open.mkv", pictures(50), options=options, bframes=3, gop=8)


def mpeg_ts(folder: Path) -> Path:
    return encode(folder / "stream.ts", pictures(50), codec="mpeg2video", bframes=2, gop=9)


def mpeg_ps(folder: Path) -> Path:
    """A program stream: after a seek the demuxer reports times that no frame has."""
    return encode(folder / "program.mpg", pictures(50), codec="mpeg2video", bframes=2, gop=9)


def flash(folder: Path) -> Path:
    return encode(folder / "flash.flv", pictures(50), bframes=2, gop=9)


def intra_refresh(folder: Path) -> Path:
    """Keyframes that only begin to repair the picture: seeking to one gives frames that are not yet right."""
    return encode(
        folder / "refresh.mp4", pictures(50), options={"x264-params": "intra-refresh=1:keyint=10"}, gop=10
    )


def raw_h264(folder: Path) -> Path:
    return encode(folder / "raw.h264", pictures(30), bframes=2)


def no_first_keyframe(folder: Path) -> Path:
    return encode(folder / "cut.mkv", pictures(40), drop=range(5))


def truncated_avi(folder: Path) -> Path:
    return cut(encode(folder / "cut.avi", pictures(60), codec="mpeg4"), 0.75)


def truncated_mp4(folder: Path) -> Path:
    path = encode(folder / "cut.mp4", pictures(60), bframes=2, muxer={"movflags": "+faststart"})
    return cut(path, 0.5)


def truncated_mkv(folder: Path) -> Path:
    return cut(encode(folder / "short.mkv", pictures(60), bframes=2), 0.5)


def scratched(folder: Path) -> Path:
    """Bytes overwritten in the middle of an mp4, which nothing in the container reveals."""
    path = encode(folder / "scratched.mp4", pictures(60), bframes=2)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 400] = bytes(range(200)) * 2
    path.write_bytes(data)
    return path


def patched_up(folder: Path) -> Path:
    """Bytes overwritten in the second keyframe of a transport stream: the decoder fills in what it lacks."""
    noise = torch.randint(256, (36, 48, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = encode(folder / "patched.ts", (pictures(36) // 2 + noise // 8), bframes=2)
    with av.open(str(path)) as container:
        keys = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe]
    data = bytearray(path.read_bytes())
    middle = keys[1] + 188 * 4 + 90  # far from the headers of packets, which are 188 bytes long
    data[middle : middle + 8] = bytes(8)
    path.write_bytes(data)
    return path


def wrong_header(folder: Path) -> Path:
    """An AVI whose header promises 9,999 frames."""
    path = encode(folder / "header.avi", pictures(30), codec="mpeg4")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, 9999)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, 9999)
    path.write_bytes(data)
    return path


def rotated(folder: Path) -> Path:
    """A phone's video: stored lying down, with a display matrix: turn by 90 degrees clockwise."""
    path = encode(folder / "phone.mp4", pictures(20))
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    return path


def changing_size(folder: Path) -> Path:
    """A raw stream whose second half has another frame size."""
    first = encode(folder / "a.h264", pictures(12))
    second = encode(folder / "b.h264", pictures(12, 64, 96))
    path = folder / "sizes.h264"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


def odd_size(folder: Path) -> Path:
    return encode(folder / "odd.mkv", pictures(12, 37, 51), codec="ffv1", pixels="yuv444p")


def one_frame(folder: Path) -> Path:
    return encode(folder / "one.mp4", pictures(1))


def cut(path: Path, share: float) -> Path:
    """Keep only the first `share` of a file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


AWKWARD = [
    constant,
    constant_b,
    variable,
    webm,
    edit_list,
    avi_b,
    avi_h264,
    avi_packed,
    vp8_hidden,
    hevc_cut,
    repeated_times,
    avi_gaps,
    open_gop,
    mpeg_ts,
    mpeg_ps,
    flash,
    intra_refresh,
    raw_h264,
    no_first_keyframe,
    truncated_avi,
    truncated_mp4,
    truncated_mkv,
    scratched,
    patched_up,
    wrong_header,
    rotated,
    changing_size,
    odd_size,
    one_frame,
]
