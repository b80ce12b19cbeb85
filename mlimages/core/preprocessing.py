"""How an image becomes the network's input: its size, its channels and the scaling of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from operator import index
from typing import Any, Literal

from mlimages.core.codes import MAX_PIXELS
from mlimages.core.errors import InputError
from mlimages.core.options import check_choice, parse_bool

Resize = Literal["shorter", "crop", "downscale", "position", "squash", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]


def parse_size(text: str) -> int | tuple[int, int]:
    """Parse a size in pixels: `224` or `224x320` (width x height).

    Raises:
        InputError: `text` is not a size in one of these forms.

    Examples:
        >>> parse_size("224"), parse_size("224x320")
        (224, (224, 320))
    """
    sides = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if not all(sides) or len(sides) > 2:
        raise InputError(f"{text!r} is not a size in pixels: expected N for a square, or WIDTHxHEIGHT")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def format_size(width: int, height: int) -> str:
    """Return a size in pixels as text that `parse_size` reads: `224` for a square, else `224x320`."""
    return str(width) if width == height else f"{width}x{height}"


@dataclass(frozen=True, slots=True)
class ImageProperty:
    """Preprocessing settings: how each image is resized and cropped to the size of the network's input.

    Where a crop extends beyond the image, it is black. A large JPEG, whose shorter side is at least four times that of
    the result, is decoded at a reduced scale; its pixels then differ slightly from those of a full decode.

    Attributes:
        width, height: size of the result in pixels; height 0 means the same as width.
        resize: `shorter` scales the shorter side to `shorter_px` and crops the centre (torchvision's Resize and
            CenterCrop). `crop` crops the centre, unscaled. `downscale` cuts out the largest central part with the
            aspect ratio of the result and scales it down; it never scales up, but treats an image with a side smaller
            than the result as `crop` does. `position` crops at `position`, unscaled. `squash` scales width and height
            separately, which changes the aspect ratio. `letterbox` scales the whole image to fit, and fills the rest
            with black.
        shorter_px: length in pixels to which `resize="shorter"` scales the shorter side. It must not be less than
            `width` or `height`; 0 means the larger of the two.
        position: left and top of the crop in pixels, for `resize="position"`.
        interpolation: resampling filter, as in Pillow.
        gray_scale: use one channel (ITU-R 601-2 luma) instead of three.
        resize_by_center, resize_by_downscale, resize_by_position: arguments of mlimages 0.5 instead of `resize="crop"`,
            `resize="downscale"`, and `resize="position", position=(left, top)`. They are not attributes.

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> from mlimages import ImageProperty
        >>> prop = ImageProperty(224, shorter_px=256)
        >>> prop.height, prop.channels
        (224, 3)
        >>> ImageProperty(32, resize_by_center=True) == ImageProperty(32, resize="crop")
        True
    """

    width: int
    height: int = 0
    resize: Resize = "shorter"
    shorter_px: int = 0
    position: tuple[int, int] = (0, 0)
    interpolation: Interpolation = "bilinear"
    gray_scale: bool = False
    resize_by_center: InitVar[bool] = False
    resize_by_downscale: InitVar[bool] = False
    resize_by_position: InitVar[tuple[int, int] | None] = None

    def __post_init__(
        self, resize_by_center: bool, resize_by_downscale: bool, resize_by_position: tuple[int, int] | None
    ) -> None:
        if resize_by_position:
            self._set_fields(resize="position", position=resize_by_position)
        elif resize_by_downscale or resize_by_center:
            self._set_fields(resize="downscale" if resize_by_downscale else "crop")
        check_choice(Resize, resize=self.resize)
        check_choice(Interpolation, interpolation=self.interpolation)
        self._set_fields(gray_scale=parse_bool("gray_scale", self.gray_scale))
        width = _parse_pixels("width", self.width, 1)
        height = _parse_pixels("height", self.height, 0, "0 means the same as width")
        shorter_px = _parse_pixels("shorter_px", self.shorter_px, 0, "0 means the larger of width and height")
        larger = max(width, height)
        self._set_fields(width=width, height=height or width, shorter_px=shorter_px or larger)
        for sides in ((self.width, self.height), (self.shorter_px, self.shorter_px)):
            if sides[0] * sides[1] > MAX_PIXELS:
                raise InputError(f"{sides[0]} x {sides[1]} pixels are too many: at most {MAX_PIXELS} are supported")
        if self.shorter_px < larger:
            raise InputError(
                f"a shorter side of {self.shorter_px} px cannot contain a crop of {self.width} x {self.height}: "
                "use a larger shorter_px or a smaller crop"
            )
        try:
            left, top = self.position
        except (TypeError, ValueError):
            raise InputError(f"position is {self.position!r}: expected (left, top) in pixels") from None
        self._set_fields(
            position=(_parse_pixels("position[0] (left)", left, 0), _parse_pixels("position[1] (top)", top, 0))
        )

    def _set_fields(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def channels(self) -> int:
        """Number of channels: 1 in grayscale, else 3."""
        return 1 if self.gray_scale else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the network's input for one image, `(C, H, W)`."""
        return self.channels, self.height, self.width


def _parse_pixels(name: str, value: Any, minimum: int, hint: str = "") -> int:
    """Return `value` as an int; raise InputError, with the hint, if it is not an integer of at least `minimum`."""
    try:
        pixels = index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}: expected a whole number of pixels") from None
    if pixels < minimum:
        raise InputError(f"{name} is {pixels}: expected at least {minimum} px{hint and ' (' + hint + ')'}")
    return pixels


@dataclass(frozen=True, slots=True)
class Normalization:
    """Normalization of uint8 pixels to the network's input: `(pixels / scale - mean) / std`, by channel.

    Attributes:
        scale: divisor of the pixels (255 gives 0..1).
        mean, std: one value for all channels, or three in the order RGB, in units of `pixels / scale`.
        mean_image: name of the .npy file with the mean image, float32 `(C, H, W)` in 0..255, that is subtracted before
            the division by `scale`, instead of `mean`; "" if there is none. `fine_tune` sets this to the file that it
            writes into the run folder. The name alone does not load a file: to use a mean image, pass it as
            `TrainingData(mean_image=)` or `FineTuneConfig(mean=)`.
        bgr: whether the network's channel order is blue, green, red, as in Caffe.

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> from mlimages import Normalization
        >>> Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).scale
        255.0
    """

    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    mean_image: str = ""
    bgr: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _parse_number("scale", self.scale))
        if not 0 < self.scale < math.inf:
            raise InputError(f"scale is {self.scale:g}: pixels are divided by it, so it must be greater than 0")
        for name in ("mean", "std"):
            object.__setattr__(self, name, _parse_channel_values(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std}: the input is divided by it, so it must be greater than 0")
        if max(self.mean) > 255 / self.scale * (1 + 1e-6):  # it may be computed with another scale
            raise InputError(
                f"mean is {self.mean}, but pixels / scale is at most {255 / self.scale:g} with a scale of "
                f"{self.scale:g}: divide the mean by {self.scale:g}, or use scale=1 for a mean of pixels in 0..255"
            )
        object.__setattr__(self, "bgr", parse_bool("bgr", self.bgr))

    def check_mean_image(self, mean_image: object) -> None:
        """Check that the argument, an array, is not None if `self.mean_image` names a file.

        Raises:
            InputError: `self.mean_image` names a file, but the argument is None.
        """
        if self.mean_image and mean_image is None:
            raise InputError(
                f"Normalization(mean_image={self.mean_image!r}) is only the name of a file, which is not loaded: pass "
                "the file or array as TrainingData(mean_image=), TrainedNetwork(mean_image=) or FineTuneConfig(mean=)"
            )

    def check_channels(self, image: ImageProperty) -> None:
        """Check that `mean` and `std` each have one value, or as many values as `image.channels`.

        Raises:
            InputError: the number of values differs from the number of channels.
        """
        kind = "a grayscale image has one channel" if image.gray_scale else "an RGB image has three channels"
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, image.channels):
                raise InputError(f"{name} has {len(values)} values, but {kind}")


def _parse_number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}: expected a number") from None


def _parse_channel_values(name: str, values: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(_parse_number(name, value) for value in values)
    except TypeError:
        raise InputError(f"{name} is {values!r}: expected one value per channel, such as (0.5,)") from None
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} is {values!r}: expected one or three finite values, one per channel")
    return numbers


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """All steps from an upright RGB image to the network's input.

    With grayscale images and three values of mean and std, the network gets the gray channel three times.

    Attributes:
        image: size of the network's input, and how an image is resized to it.
        normalization: normalization of the resized pixels.

    Examples:
        >>> from mlimages import ImageProperty, Normalization, Preprocessing
        >>> Preprocessing(ImageProperty(28, gray_scale=True), Normalization(mean=(0.5,))).image.shape
        (1, 28, 28)
    """

    image: ImageProperty
    normalization: Normalization

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of the network's input for one image, `(C, H, W)`.

        C is 1 if the images are grayscale and `normalization.mean` has one value, else 3.
        """
        return max(self.image.channels, len(self.normalization.mean)), self.image.height, self.image.width

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Create an instance from the result of `dataclasses.asdict`, as read from a JSON file."""
        return cls(ImageProperty(**values["image"]), Normalization(**values["normalization"]))
