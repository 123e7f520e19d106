"""Sampling, timestamps, expansion and reading of videos; the plugin through the registry. No weights, no PyAV."""

from __future__ import annotations

import io
import json
import struct
import sys
import weakref
import zlib
from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import gemma4_video
import numpy as np
import pytest
from gemma4_video import reading
from gemma4_video.sampling import expansion, sample_indices, timestamp
from gemma4_video.tower import VideoTower
from PIL import Image
from tiny_model import tiny_config

from gemma4_core import GemmaMultimodalProcessor, InputError, registry

BOI, VIDEO, EOI = (tiny_config()[f"{name}_token_id"] for name in ("boi", "video", "eoi"))


@pytest.fixture(autouse=True)
def plugin() -> Any:
    """The plugin, registered by hand where it is not installed."""
    if "video" in registry.modalities:
        yield
        return
    registry.register(gemma4_video, "video-under-test")
    yield
    registry.unregister("video-under-test")


@pytest.fixture
def processor(tmp_path: Path) -> GemmaMultimodalProcessor:
    return GemmaMultimodalProcessor.from_pretrained(write_folder(tmp_path / "model"))


def write_folder(folder: Path, **processor_config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    (folder / "processor_config.json").write_text(json.dumps(processor_config))
    data = package_files("gemma4_core") / "data" / "tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((data / name).read_bytes())
    return folder


def frame(number: int, height: int = 48, width: int = 96) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x * 2 + number * 31) % 256, (y * 3) % 256, np.full_like(x, number * 7 % 256)]
    return np.stack(channels, -1).astype(np.uint8)


def animate(path: Path, count: int, milliseconds: int | list[int]) -> Path:
    images = [Image.fromarray(frame(i)) for i in range(count)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, lossless=True)
    return path


@pytest.mark.parametrize(
    ("total", "wanted", "indices"),
    [(32, 32, list(range(32))), (64, 32, list(range(0, 64, 2))), (100, 3, [0, 33, 66]), (3, 9, [0, 1, 2])],
)
def test_sampling(total: int, wanted: int, indices: list[int]) -> None:
    assert sample_indices(total, wanted) == indices
    assert sample_indices(1000, 32) == [k * 1000 // 32 for k in range(32)]


def test_timestamps_and_expansion() -> None:
    assert [timestamp(s) for s in (0, 59.99, 60, 3723.5)] == ["00:00", "00:59", "01:00", "62:03"]
    assert expansion([0, 2.4], [1, 2]) == "00:00 <|image><|video|><image|> 00:02 <|image><|video|><|video|><image|>"


def test_a_video_expands_frame_by_frame(processor: GemmaMultimodalProcessor) -> None:
    video = np.stack([frame(i) for i in range(6)])
    prepared = processor.prepare_inputs("See <|video|> now", videos=[(video, 0.5)])
    (medium,) = prepared.media
    each = medium.soft_tokens // 6
    assert medium.soft_tokens == each * 6 and medium.seconds == 12
    assert prepared.input_ids.count(VIDEO) == medium.soft_tokens and prepared.input_ids.count(BOI) == 6
    text = processor.tokenizer.decode([i for i in prepared.input_ids if i != VIDEO])
    assert text == "<bos>See " + " ".join(f"00:{2 * i:02d} <|image><image|>" for i in range(6)) + " now"
    assert prepared.pixel_values_videos is not None and prepared.pixel_values_videos.shape == (6, 630, 768)
    assert prepared.video_position_ids is not None and prepared.pixel_values is None


def test_frames_are_cut_as_images_are(processor: GemmaMultimodalProcessor) -> None:
    video = processor.prepare_inputs("<|video|>", videos=[np.stack([frame(3), frame(4)])])
    image = processor.prepare_inputs("<|image|>", images=[frame(3)], image_tokens=70)
    assert video.pixel_values_videos is not None and image.pixel_values is not None
    assert np.array_equal(video.pixel_values_videos[0], image.pixel_values[0])


def test_videos_and_images_together(processor: GemmaMultimodalProcessor) -> None:
    two = [np.stack([frame(i) for i in range(n)]) for n in (2, 3)]
    talk = [{"role": "user", "content": [{"type": "video", "video": two[0]}, {"type": "image", "image": frame(1)},
                                         {"type": "text", "text": "and <|video|>"}]}]
    prepared = processor.prepare_inputs(talk, videos=[two[1]], image_tokens=70)
    assert prepared.pixel_values_videos is not None and len(prepared.pixel_values_videos) == 5
    assert prepared.pixel_values is not None and len(prepared.pixel_values) == 1
    with pytest.raises(InputError, match=r"2 <\|video\|> placeholders but 1 video was given"):
        processor.prepare_inputs("<|video|> <|video|>", videos=[two[0]])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animated_images(processor: GemmaMultimodalProcessor, tmp_path: Path, suffix: str) -> None:
    path = animate(tmp_path / f"moving{suffix}", 4, [1000, 3000, 500, 500])
    for source in (str(path), path.read_bytes()):
        prepared = processor.prepare_inputs("<|video|>", videos=[source])
        text = processor.tokenizer.decode([i for i in prepared.input_ids if i != VIDEO])
        times = ("00:00", "00:01", "00:04", "00:04")
        assert text == "<bos>" + " ".join(f"{time} <|image><image|>" for time in times)
        assert prepared.media[0].seconds == 5


def test_a_folder_of_frames_in_natural_order(processor: GemmaMultimodalProcessor, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(frame(i)).save(folder / f"frame{i}.png")
    (folder / "notes.txt").write_text("not a frame")
    from_files = processor.prepare_inputs("<|video|>", videos=[folder], video_fps=2.0)
    images = [Image.fromarray(frame(i)) for i in range(12)]
    from_arrays = processor.prepare_inputs("<|video|>", videos=[images], video_fps=2)
    assert from_files.input_ids == from_arrays.input_ids and from_files.media[0].seconds == 6
    assert np.array_equal(from_files.pixel_values_videos, from_arrays.pixel_values_videos)  # type: ignore[arg-type]


def test_options_and_settings(tmp_path: Path) -> None:
    video = np.stack([frame(i) for i in range(9)])
    set_up = write_folder(tmp_path / "set", video_processor={"num_frames": 3, "max_soft_tokens": 140})
    ours = GemmaMultimodalProcessor.from_pretrained(set_up)
    prepared = ours.prepare_inputs("<|video|>", videos=[video])
    assert prepared.pixel_values_videos is not None and prepared.pixel_values_videos.shape[:2] == (3, 1260)
    fewer = ours.prepare_inputs("<|video|>", videos=[video], video_frames=2, video_tokens=70)
    assert fewer.pixel_values_videos is not None and fewer.pixel_values_videos.shape[:2] == (2, 630)
    for options, said in (({"video_frames": 0}, "--video-frames 0"), ({"video_tokens": 71}, "--video-tokens 71"),
                          ({"video_fps": -1}, "-1 frames per second")):
        with pytest.raises(InputError, match=said):
            ours.prepare_inputs("<|video|>", videos=[video], **options)


def test_files_without_pyav(
    processor: GemmaMultimodalProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 100)
    with pytest.raises(InputError, match=r"clip\.mp4: reading video files needs PyAV: pip install"):
        processor.prepare_inputs("<|video|>", videos=[tmp_path / "clip.mp4"])


def cut_gif(folder: Path) -> Path:
    path = animate(folder / "cut.gif", 5, 100)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def empty_folder(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "absent.mp4", r"absent\.mp4: no such file"),
        (empty_folder, "nothing: the folder holds no frames"),
        (cut_gif, r"cut\.gif: the animation is damaged or truncated"),
        (lambda folder: np.zeros((4, 4, 3), np.uint8), r"expected \[frames, height, width, 3\]"),
        (lambda folder: np.zeros((0, 4, 4, 3), np.uint8), "holds no frames"),
        (lambda folder: np.zeros((2, 5, 5, 5), np.uint8), "frame 0: image array of shape"),
        (lambda folder: 5, "video of int"),
        (lambda folder: (np.zeros((2, 4, 4, 3), np.uint8), 0), "0 frames per second"),
    ],
)
def test_videos_that_cannot_be_used(processor: GemmaMultimodalProcessor, tmp_path: Path, make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        processor.prepare_inputs("<|video|>", videos=[make(tmp_path)])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def gif_bomb(frames: int, width: int, height: int) -> bytes:
    """A GIF of 23 bytes per frame."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    each = b"!\xf9\4\4\1\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2D\1\0"
    return head + each * frames + b";"


def png_bomb(folder: Path) -> bytes:
    """An animated PNG whose header claims two billion frames."""
    data = animate(folder / "small.png", 3, 100).read_bytes()
    at = data.index(b"acTL")
    chunk = b"acTL" + struct.pack(">II", 2_000_000_000, 0)
    return data[:at] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at + 16 :]


BOMBS = {
    "long.gif": (lambda folder: gif_bomb(240_000, 3072, 3072), "240000 frames of 3072 x 3072 would have to be decoded"),
    "wide.gif": (lambda folder: gif_bomb(240_000, 4096, 4096), "frames of 4096 x 4096 pixels"),
    "large.gif": (lambda folder: gif_bomb(240_000, 8192, 8192), "frames of 8192 x 8192 pixels"),
    "short.gif": (lambda folder: gif_bomb(530, 3072, 3072), "530 frames of 3072 x 3072 would have to be decoded, 5e"),
    "many.gif": (lambda folder: gif_bomb(260_000, 1, 1), "260000 frames, more than the limit"),
    "claims.png": (png_bomb, "2000000000 frames, more than the limit"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_clip_length_is_checked_before_decoding(
    processor: GemmaMultimodalProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, said = BOMBS[name]
    (tmp_path / name).write_bytes(make(tmp_path))
    monkeypatch.setattr(Image.Image, "convert", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(InputError, match=f"{name}: .*{said}") as error:
        processor.prepare_inputs("<|video|>", videos=[tmp_path / name])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_webp_durations_of_frames_that_are_not_taken_count(processor: GemmaMultimodalProcessor, tmp_path: Path) -> None:
    path = animate(tmp_path / "moving.webp", 6, [1000, 5000, 2000, 3000, 500, 500])
    prepared = processor.prepare_inputs("<|video|>", videos=[path], video_frames=2)
    text = processor.tokenizer.decode([i for i in prepared.input_ids if i != VIDEO])
    assert text == "<bos>00:00 <|image><image|> 00:08 <|image><image|>" and prepared.media[0].seconds == 12


class Counted(Sequence[np.ndarray]):
    """Frames made on demand, and the most that existed at once."""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: Any) -> Any:
        made = frame(index)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(made, self._gone)
        return made

    def _gone(self) -> None:
        self.alive -= 1


def test_clips_hold_one_frame_at_a_time(processor: GemmaMultimodalProcessor) -> None:
    frames = Counted()
    prepared = processor.prepare_inputs("<|video|>", videos=[frames])
    assert prepared.pixel_values_videos is not None and len(prepared.pixel_values_videos) == 32
    assert frames.most <= 2


def test_names_with_superscripts_are_sorted(processor: GemmaMultimodalProcessor, tmp_path: Path) -> None:
    for name in ("\u00b2.png", "a\u00b2b3.png"):
        Image.fromarray(frame(1)).save(tmp_path / name)
    assert processor.prepare_inputs("<|video|>", videos=[tmp_path]).media[0].seconds == 2 / 24


class Vision:
    """A vision tower that records its calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def encode(self, features: Any, *, capture: bool = False) -> list[str]:
        self.asked.append((sorted(features), capture))
        return ["tokens"] * len(features["pixel_values"])

    def digests(self, features: Any) -> list[bytes]:
        return [b"hash"] * len(features["pixel_values"])


def test_the_tower_borrows_the_vision_tower() -> None:
    vision = Vision()
    tower = VideoTower(vision)  # type: ignore[arg-type]
    features = {"pixel_values_videos": np.zeros((3, 9, 768)), "video_position_ids": np.zeros((3, 9, 2))}
    assert tower.encode(features, capture=True) == ["tokens"] * 3 and tower.digests(features) == [b"hash"] * 3
    assert vision.asked == [(["image_position_ids", "pixel_values"], True)]
    assert tower.parameters() == {}
    with pytest.raises(InputError, match="video_position_ids is missing"):
        tower.encode({"pixel_values_videos": np.zeros((3, 9, 768))})


def encode(path: Path, count: int, **options: str) -> Path:
    """A video of 10 frames per second; skips where PyAV is not installed."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        for i in range(count):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame(i), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_long_files_are_decoded_near_the_frames_that_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = str(encode(tmp_path / f"clip{suffix}", 120, g="10", bf="2"))
    with monkeypatch.context() as patch:
        patch.setattr(reading, "_decode_all", lambda *a: pytest.fail("decoded from the first frame"))
        near = reading.read_frames(path, 5, None, np.array)
    monkeypatch.setattr(reading, "_starts", lambda indices, shown, keys: [0] * len(indices))
    every = reading.read_frames(path, 5, None, np.array)
    assert near.times == every.times == [0, 2.4, 4.8, 7.2, 9.6] and near.seconds == every.seconds == 12
    assert all(np.array_equal(a, b) for a, b in zip(near.images, every.images, strict=True))


def test_clip_length_of_a_file_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(encode(tmp_path / "clip.mp4", 60, g="600"))
    monkeypatch.setattr(reading, "MAX_VIDEO_PIXELS", 30 * 96 * 48)
    with pytest.raises(InputError, match=r"clip\.mp4: 49 frames of 96 x 48 would have to be decoded"):
        reading.read_frames(path, 5, None, np.array)
    assert len(reading.read_frames(path, 1, None, np.array).images) == 1
    monkeypatch.setattr(reading, "MAX_FRAMES", 59)
    with pytest.raises(InputError, match=r"60 frames, more than the limit of 59"):
        reading.read_frames(path, 1, None, np.array)
    monkeypatch.setattr(reading, "MAX_FRAME_PIXELS", 1000)
    with pytest.raises(InputError, match=r"frames of 96 x 48 pixels"):
        reading.read_frames(path, 1, None, np.array)
    monkeypatch.setattr(reading, "_check", lambda *a: None)  # as if the header said less
    with pytest.raises(InputError, match="is not a video that can be read"):
        reading.read_frames(path, 1, None, np.array)


def test_a_file_through_pyav(processor: GemmaMultimodalProcessor, tmp_path: Path) -> None:
    """Runs where PyAV is installed; the message without it is tested above."""
    path = encode(tmp_path / "clip.mp4", 50)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        prepared = processor.prepare_inputs("<|video|>", videos=[source], video_frames=5)
        text = processor.tokenizer.decode([i for i in prepared.input_ids if i != VIDEO])
        assert text == "<bos>" + " ".join(f"00:{i:02d} <|image><image|>" for i in range(5))
        assert prepared.media[0].seconds == 5
    for name, content in (("cut.mp4", path.read_bytes()[:3000]), ("text.mp4", b"no video" * 50)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name[:-4]}.mp4: is not a video that can be read"):
            processor.prepare_inputs("<|video|>", videos=[tmp_path / name])
