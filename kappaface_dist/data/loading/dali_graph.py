"""The DALI pipeline: encoded bytes or pixels -> normalised images with the changes of augment.py.

One definition for the CPU and for the GPU, with or without decoding; a change that the preset never
makes has no place in it. Imported only where DALI is installed.
Shapes: B images on this rank, H W the image size.
"""

from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from kappaface_dist.data.loading.augment import WHOLE, Changes, Preset
from kappaface_dist.data.loading.augment_cpu import box_pixels, small_side
from kappaface_dist.data.normalisation import PIXEL_MEAN, PIXEL_SCALE

PAYLOAD = "payload"
RESIZE = "resize"
# In the order of augment.FILTERS.
INTERPOLATIONS = (
    types.INTERP_NN,
    types.INTERP_LINEAR,
    types.INTERP_CUBIC,
    types.INTERP_LANCZOS3,
)
AHEAD = 2  # batches inside DALI


def build_pipeline(
    preset: Preset,
    *,
    batch_size: int,
    image_size: int,
    num_threads: int,
    device_id: int | None,
    decode: bool,
) -> Pipeline:
    """A pipeline for batch_size images.

    Args:
        preset: the changes that it can make.
        batch_size: images per batch.
        image_size: height and width of the pixels.
        num_threads: of DALI's own.
        device_id: number of the GPU; None for the CPU.
        decode: whether PAYLOAD is encoded images and RESIZE comes with them, or pixels.
    """
    decoder = "cpu" if device_id is None else "mixed"
    pipeline = _graph(
        preset,
        image_size,
        decoder if decode else None,
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=AHEAD,
        # DALI's default executor allocates every output anew: a tenth of the time on the CPU.
        exec_dynamic=None if device_id is not None else False,
    )
    pipeline.build()
    return pipeline


class Feeder:
    """Puts batches into a pipeline and sets it running."""

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline
        self._num_fed = 0
        self._last: dict[str, Any] = {}

    def feed(self, inputs: dict[str, Any]) -> None:
        """Add one batch, by the names of the pipeline's inputs."""
        for name, value in inputs.items():
            self._pipeline.feed_input(name, value)
        self._last = inputs
        self._num_fed += 1
        # DALI's first start takes all the batches that it works on at once.
        if self._num_fed >= AHEAD:
            self._pipeline.schedule_run()

    def complete(self) -> None:
        """To be called when no more can be fed for now: fills up DALI's first start."""
        while self._num_fed < AHEAD:
            self.feed(self._last)


def change_inputs(preset: Preset, changes: Changes, image_size: int) -> dict[str, np.ndarray]:
    """What the pipeline wants to know about the changes of a batch, by the names of its inputs."""
    size = image_size
    inputs: dict[str, np.ndarray] = {}
    if preset.crop:
        inputs["crop_start"] = changes.crop_B4[:, [1, 0]]
        inputs["crop_end"] = changes.crop_B4[:, [3, 2]]
        inputs["crop"] = (changes.crop_B4 != np.array(WHOLE, np.float32)).any(axis=1)
    if preset.photometric or preset.grey:
        inputs["matrix"] = changes.colour_B34[:, :, :3]
        inputs["offset"] = changes.colour_B34[:, :, 3]
        same = changes.colour_B34 == np.eye(3, 4, dtype=np.float32)
        inputs["colour"] = ~same.reshape(len(same), -1).all(1)
    if preset.window:
        boxes = [box_pixels(box, size) for box in changes.window_B4]
        regions = [_around(*box, size) for box in boxes]
        inputs["window"] = np.array([box != (0, 0, size, size) for box in boxes])
        inputs["window_anchor"] = np.array([anchor for anchor, _ in regions], np.float32)
        inputs["window_shape"] = np.array([shape for _, shape in regions], np.float32)
    if preset.occlusion:
        box_B4 = np.array([box_pixels(box, size) for box in changes.occlusion_B4])
        inputs["occlusion"] = changes.occlusion_B4[:, 2] > 0
        inputs["occlusion_anchor"] = box_B4[:, [1, 0]].astype(np.float32)
        inputs["occlusion_shape"] = (box_B4[:, [3, 2]] - box_B4[:, [1, 0]]).astype(np.float32)
        inputs["occlusion_colour"] = np.round(changes.occlusion_colour_B3)
    if preset.blur:
        inputs["blur"] = changes.sigma_B > 0
        inputs["sigma"] = np.where(inputs["blur"], changes.sigma_B * size, 1.0).astype(np.float32)
    if preset.low_resolution:
        inputs["low"] = changes.side_B < 1
        inputs["side"] = np.array(
            [[small_side(side, size)] * 2 for side in changes.side_B], np.float32
        )
        codes = np.array([int(code) for code in INTERPOLATIONS], np.int32)
        inputs["down"] = codes[changes.down_B]
        inputs["up"] = codes[changes.up_B]
    if preset.jpeg:
        inputs["jpeg"] = changes.quality_B > 0
        inputs["quality"] = np.maximum(changes.quality_B, 1)
    if preset.flip:
        inputs["flip"] = changes.flip_B.astype(np.int32)
    return {name: np.ascontiguousarray(array) for name, array in inputs.items()}


def _around(left: int, top: int, right: int, bottom: int, size: int) -> tuple[list[int], list[int]]:
    """The four rectangles around a box, as (row, column) corners and as (height, width) sizes."""
    anchors = [0, 0, bottom, 0, top, 0, top, right]
    shapes = [top, size, size - bottom, size, bottom - top, left, bottom - top, size - right]
    return anchors, shapes


@pipeline_def(enable_conditionals=True)
def _graph(preset: Preset, size: int, decoder: str | None) -> Any:
    if decoder is None:
        image = fn.external_source(name=PAYLOAD, dtype=types.UINT8, ndim=3, layout="HWC")
    else:
        image = fn.decoders.image(
            _input(PAYLOAD, types.UINT8, 1),
            device=decoder,
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,  # as libjpeg does; otherwise the GPU's colours are coarser
        )
        # Resizing to the same size would cost as much as decoding.
        if _input(RESIZE, types.BOOL, 0):
            image = fn.resize(image, size=[size, size])
    if preset.crop:
        start = _input("crop_start", types.FLOAT, 1)
        end = _input("crop_end", types.FLOAT, 1)
        if _input("crop", types.BOOL, 0):
            image = fn.resize(
                image, size=[size, size], roi_start=start, roi_end=end, roi_relative=True
            )
    if preset.photometric or preset.grey:
        matrix = _input("matrix", types.FLOAT, 2)
        offset = _input("offset", types.FLOAT, 1)
        if _input("colour", types.BOOL, 0):
            image = fn.coord_transform(image, M=matrix, T=offset, dtype=types.UINT8)
    if preset.window:
        anchor = _input("window_anchor", types.FLOAT, 1)
        shape = _input("window_shape", types.FLOAT, 1)
        if _input("window", types.BOOL, 0):
            image = fn.erase(image, anchor=anchor, shape=shape, axis_names="HW", fill_value=0)
    if preset.occlusion:
        anchor = _input("occlusion_anchor", types.FLOAT, 1)
        shape = _input("occlusion_shape", types.FLOAT, 1)
        colour = _input("occlusion_colour", types.FLOAT, 1)
        if _input("occlusion", types.BOOL, 0):
            image = fn.erase(image, anchor=anchor, shape=shape, axis_names="HW", fill_value=colour)
    if preset.blur:
        sigma = _input("sigma", types.FLOAT, 0)
        if _input("blur", types.BOOL, 0):
            image = fn.gaussian_blur(image, sigma=sigma)
    if preset.low_resolution:
        side = _input("side", types.FLOAT, 1)
        down = fn.reinterpret(_input("down", types.INT32, 0), dtype=types.INTERP_TYPE)
        up = fn.reinterpret(_input("up", types.INT32, 0), dtype=types.INTERP_TYPE)
        if _input("low", types.BOOL, 0):
            image = fn.resize(image, size=side, interp_type=down)
            image = fn.resize(image, size=[size, size], interp_type=up)
    if preset.jpeg:
        quality = _input("quality", types.INT32, 0)
        if _input("jpeg", types.BOOL, 0):
            image = fn.jpeg_compression_distortion(image, quality=quality)
    mirror = _input("flip", types.INT32, 0) if preset.flip else 0
    return fn.crop_mirror_normalize(
        image,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[PIXEL_MEAN] * 3,
        std=[PIXEL_SCALE] * 3,
        mirror=mirror,
    )


def _input(name: str, dtype: Any, ndim: int) -> Any:
    return fn.external_source(name=name, dtype=dtype, ndim=ndim)
