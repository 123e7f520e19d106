"""Sound: decoding, mixing, resampling, log-mel features of the reference, and sounds that cannot be used."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from media import SOUNDS, speech, tone
from reference_data import DATA, load_features

from gemma4_core import ConfigError, Context, InputError
from gemma4_core.config import parse_config
from gemma4_plugins.modalities.audio.features import MelSettings, log_mel, token_count
from gemma4_plugins.modalities.audio.processor import AudioProcessor
from gemma4_plugins.modalities.audio.resample import output_length, resample

TOLERANCE = 1e-5
COUNTS = {160: (0, 0), 161: (1, 1), 640: (3, 1), 1600: (9, 3), 8000: (49, 13), 16000: (99, 25), 48000: (299, 75),
          98832: (617, 155), 160000: (999, 250), 480000: (2999, 750)}


def processor(**options: Any) -> AudioProcessor:
    return AudioProcessor(Context(), options)


@pytest.mark.parametrize("samples", COUNTS)
def test_frames_and_tokens_of_the_facts(samples: int) -> None:
    _, valid = log_mel(np.zeros(samples, np.float32), MelSettings())
    frames = int(valid.sum())
    assert (frames, token_count(frames)) == COUNTS[samples]


def test_features_of_the_facts() -> None:
    features, valid = log_mel(tone(16000), MelSettings())
    found = features[10, [10, 20, 23, 24, 25, 30]]
    assert np.allclose(found, [-3.93387, -0.337932, 2.91565, 3.52727, 3.19791, -1.34832], atol=2e-5)
    assert features[10].argmax() == 24
    silence, _ = log_mel(np.zeros(16000, np.float32), MelSettings())
    assert np.allclose(silence[:99], np.log(1e-3))
    assert not silence[99:].any() and valid.sum() == 99


@pytest.mark.parametrize(("name", "samples"), load_features())
def test_features_equal_the_reference(name: str, samples: int) -> None:
    reference = load_features()[name, samples]
    sound = SOUNDS[name](samples)
    if samples > 480_000:
        sound = sound[:480_000]  # the reference cuts without a word
    features, valid = log_mel(sound, MelSettings())
    assert (len(features), int(valid.sum()), token_count(int(valid.sum()))) == \
        (reference.total, reference.valid, reference.tokens)
    assert np.abs(features[reference.frame_index] - reference.frames).max(initial=0) < TOLERANCE
    assert np.abs(features[valid].mean(1) - reference.frame_means).max(initial=0) < TOLERANCE


def test_clips_are_padded_together() -> None:
    ours = processor()
    made = ours.prepare([ours.load(tone(16000)), ours.load(speech(5000))])
    features, mask = made.features["input_features"], made.features["input_features_mask"]
    assert features.shape[:2] == mask.shape and features.dtype == np.float32 and mask.dtype == np.bool_
    assert mask.sum(1).tolist() == [99, 31] and list(made.soft_tokens) == [25, 8]
    assert not features[~mask].any()
    assert made.expansions[1] == "<|audio>" + "<|audio|>" * 8 + "<audio|>"
    assert made.seconds == [1.0, 5000 / 16000]


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"),
     ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)
def test_stereo_at_44100_gives_nearly_the_same_features(container: str, subtype: str) -> None:
    file = io.BytesIO()
    left = speech(44100 * 2, 44100)
    soundfile.write(file, np.stack([left, 0.5 * left], 1), 44100, format=container, subtype=subtype)
    found = processor().load(file.getvalue())
    expected, valid = log_mel(0.75 * speech(32000), MelSettings())
    assert abs(int(found.valid.sum()) - int(valid.sum())) <= 1
    frames = slice(2, 190)
    # above 7 kHz the filters differ, and quiet bins hold the noise of quantisation
    heard = expected[frames, :110] > -1
    apart = np.abs(found.features[frames, :110] - expected[frames, :110])[heard]
    assert heard.mean() > 0.15
    assert np.median(apart) < (0.005 if subtype not in ("PCM_U8", "VORBIS", "MPEG_LAYER_III") else 0.15)


@pytest.mark.parametrize("name", ["deep22k.flac", "float16k.wav", "mono32k.mp3", "mono8k.wav", "stereo44k.wav",
                                  "stereo48k.ogg"])
def test_committed_files_are_read(name: str) -> None:
    path = DATA / "media" / name
    clip = processor().load(path)
    info = soundfile.info(str(path))
    assert clip.seconds == pytest.approx(info.frames / info.samplerate, abs=0.06)
    assert np.isfinite(clip.features).all() and clip.features[clip.valid].max() > -3


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 44101])
def test_resampling_keeps_a_tone(rate: int) -> None:
    made = resample(tone(rate, rate), rate, 16000)
    assert len(made) == output_length(rate, rate, 16000) == 16000
    inner = slice(1500, -1500)
    assert np.abs(made[inner] - tone(16000)[inner]).max() < 1e-5


@pytest.mark.parametrize("rate", [2003, 15_999, 16_001, 44_101, 191_999, 767_999])
def test_sound_rate_without_common_divisor_keeps_a_tone(rate: int) -> None:
    """Its filters, one for each of 16000 phases, take up to 200 MB."""
    sound = np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate).astype(np.float32)
    tracemalloc.start()
    made = resample(sound, rate, 16000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = np.sin(2 * np.pi * 440 * np.arange(len(made)) / 16000)
    assert np.abs(made - expected)[2000:-2000].max() < 1e-5
    assert peak < 8 * sound.nbytes + (32 << 20)


def test_sound_rate_filters_between_two_equal_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = SOUNDS["noise"](8000)
    for rate in (8000, 44100, 192_000):
        exact = resample(sound, rate, 16000)
        with monkeypatch.context() as patch:
            patch.setattr("gemma4_plugins.modalities.audio.resample.EXACT_TAPS", 0)
            assert np.abs(resample(sound, rate, 16000) - exact).max() < 1e-6


@pytest.mark.parametrize(("container", "subtype"), [("W64", "PCM_16"), ("RF64", "PCM_16"), ("AIFF", "PCM_16")])
def test_other_containers_are_read(container: str, subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(16000), 16000, format=container, subtype=subtype)
    assert processor().load(file.getvalue()).seconds == 1


def test_resampling_removes_what_would_alias() -> None:
    high = np.sin(2 * np.pi * 9000 * np.arange(44100) / 44100).astype(np.float32)
    assert np.abs(resample(high, 44100, 16000)[500:-500]).max() < 1e-4


def test_many_ways_to_give_a_sound(tmp_path: Path) -> None:
    path, sound = tmp_path / "tone.wav", tone(16000)
    soundfile.write(path, sound, 16000, subtype="FLOAT")
    ours = processor()
    expected = ours.load(path).features
    stereo = np.stack([sound, sound], 1)
    for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), sound, (sound, 16000), stereo, stereo.T,
                   {"array": sound, "sampling_rate": 16000}, sound.astype(np.float64)):
        assert np.abs(ours.load(source).features - expected).max() < TOLERANCE
    whole = (sound * 32767).round().astype(np.int16)
    apart = np.abs(ours.load(whole).features - expected)
    assert apart[expected > -3].max() < 0.01  # quieter bins hold the noise of quantisation


def test_long_clips_are_refused_or_cut(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(40 * 8000, np.float32), 8000)
    with pytest.raises(InputError, match=r"long\.wav: lasts 40\.0 s, longer than the 30 s .*--audio-truncate"):
        processor().load(path)
    assert processor(audio_truncate=True).load(path).seconds == 30.0
    with pytest.raises(InputError, match=r"lasts 31\.0 s"):
        processor().load(np.zeros(31 * 16000))
    assert processor().load(np.zeros(30 * 16000 + 900)).seconds == 30.0  # what encoders pad


def test_ten_hours_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "day.wav"
    soundfile.write(path, np.zeros(1000, np.float32), 8000, subtype="PCM_U8")
    size = 10 * 3600 * 8000
    head = bytearray(path.read_bytes()[:44])
    head[4:8], head[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size + 44)  # sparse: no disk, no memory
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"day\.wav: lasts 10\.0 h"):
        processor().load(path)


def wav(samples: np.ndarray, rate: int = 16000, subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), rate, format="WAV", subtype=subtype)
    return file.getvalue()


def unknown_codec() -> bytes:
    data = bytearray(wav(tone(1000), subtype="PCM_16"))
    data[20:22] = b"\x77\x77"
    return bytes(data)


BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "absent.wav": (None, "no such file"),
    "empty.wav": (b"", r"empty \(0 bytes\)"),
    "text.wav": (b"these are words" * 20, "is not sound that can be read"),
    "song.m4a": (b"\0\0\0\x20ftypM4A " + b"\0" * 400, "is not sound that can be read"),
    "raw.raw": (b"\0" * 500, "is not sound that can be read"),
    "codec.wav": (unknown_codec(), "is not sound that can be read"),
    "head.wav": (wav(tone(1000))[:30], "is not sound that can be read"),
    "none.wav": (wav(np.zeros(0)), r"no sound \(0 samples\)"),
    "short.wav": (wav(np.zeros(100)), "too short; a clip needs at least 161"),
    "nan.wav": (wav(np.array([0.0, np.nan, 0.1] * 900)), "900 samples that are NaN or infinite, the first at 1"),
    "inf.wav": (wav(np.array([0.0, 0.1, np.inf] * 900)), "900 samples that are NaN or infinite, the first at 2"),
    "slow.wav": (wav(np.zeros(900), 500), "sampling rate 500 Hz"),
    "fast.wav": (wav(np.zeros(900), 768_001), "sampling rate 768001 Hz is outside"),
    "still.wav": (wav(np.zeros(900), 1), "sampling rate 1 Hz is outside"),
    "many.wav": (wav(np.zeros((9, 900))), "900 channels; at most 64"),
    "claims.wav": (wav(np.zeros(900), subtype="PCM_16")[:40] + b"\xff\xff\xff\xff" + bytes(20), "too short"),
    "broken.mp3": (b"\xff\xfb\x90\x00" + b"\0" * 30, "is not sound that can be read"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_sound(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    content, said = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        processor().load(str(tmp_path / name))
    message = str(error.value)
    assert name in message and "\n" not in message and len(message) < 500
    assert capfd.readouterr().err == ""  # decoders write to the terminal if they are let


@pytest.mark.parametrize(
    "value",
    [None, 5, "", [0.1] * 100, np.zeros(0), np.zeros((2, 3, 4)), np.array(["a"]), np.full(1000, np.nan),
     (np.zeros(1000), float("nan")), (np.zeros(1000), float("inf")), (np.zeros(1000), -16000),
     (np.zeros(1000), 10**400), (np.zeros(1000), np.float32("nan")), (np.zeros(1000), True),
     np.broadcast_to(np.float32(0), (1 << 40,)),
     np.full((1000, 2), np.inf), np.array([1e300] * 1000), {"array": np.zeros(1000), "sampling_rate": "x" * 9999},
     (np.zeros(1000), 0), (np.zeros(1000), "fast"), (np.zeros(1000), 2.5), np.zeros((1000, 100)), Path(".")],
)
def test_values_that_are_no_sound(value: Any) -> None:
    with pytest.raises(InputError) as error:
        processor().load(value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def context(tmp_path: Path, channels: list[int], text: str | None = None) -> Context:
    if text is not None:
        (tmp_path / "processor_config.json").write_text(text)
    raw = {"model_type": "gemma4", "text_config": {"model_type": "gemma4_text"},
           "audio_config": {"subsampling_conv_channels": channels}}
    return Context(tmp_path, parse_config(raw), raw)


def test_settings_come_from_the_folder(tmp_path: Path) -> None:
    assert AudioProcessor(context(tmp_path, [16, 8]), {}).settings.bins == 16
    text = '{"audio_seq_length": 250, "feature_extractor": {"feature_size": 24, "sampling_rate": 8000}}'
    ours = AudioProcessor(context(tmp_path, [24, 8], text), {})
    assert (ours.settings.bins, ours.settings.rate, ours.settings.frame_length) == (24, 8000, 160)
    assert ours.limits.seconds == 10
    for bad in ('{"feature_extractor": {"dither": 0.1}}', '{"feature_extractor": {"sampling_rate": "high"}}',
                '{"feature_extractor": {"mel_floor": -1}}',
                '{"feature_extractor": {"frame_length_ms": 1000, "hop_length_ms": 1, "sampling_rate": 768000}}',
                '{"feature_extractor": {"feature_size": 4096, "frame_length_ms": 900, "sampling_rate": 100000}}',
                '{"audio_seq_length": 1000000, "audio_ms_per_token": 9000}'):
        with pytest.raises(ConfigError, match=r"feature_extractor\."):
            AudioProcessor(context(tmp_path, [16, 8], bad), {})
