"""JSON models of requests and responses, used for validation and for the OpenAPI document.

Those of the Open Inference Protocol follow https://github.com/kserve/open-inference-protocol, with Triton's extensions
for binary tensors and classification, https://github.com/triton-inference-server/server/tree/main/docs/protocol. The
values of tensors are validated by NumPy instead.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from mlimages.inference import INPUT, KNOWN, PROBABILITIES

PREDICTION_SET = "prediction_set"
"""Name of the output with the prediction set of each image. The .onnx file has no such output: the server computes it
from the logits."""

PositiveInt = Annotated[int, Field(gt=0, strict=True)]
Known = Annotated[
    bool | None,
    Field(
        description="Whether the image belongs to one of the classes; null if the model cannot detect unknown images."
    ),
]


_NoneAsDict = BeforeValidator(lambda value: {} if value is None else value)


class Schema(BaseModel):
    """Base class of the pydantic models of this module; unknown keys in requests are ignored, as the Open Inference
    Protocol requires."""


class ErrorDetail(Schema):
    """Code and message of an error; programs may rely on `code`, but not on the wording of `message`."""

    code: str
    message: str


class ErrorResponse(Schema):
    """Response to a failed request."""

    error: ErrorDetail


class ProtocolErrorResponse(Schema):
    """Response to a failed request under /v2, whose protocol requires `error` to be a string."""

    error: str
    code: str


class Score(Schema):
    """A class and its probability."""

    class_name: str
    label: int = Field(description="Index of the class, from 0.")
    probability: float = Field(description="0 to 1.")


class ImageResult(Schema):
    """The predicted classes of an image or, if it cannot be used, only its name and the error."""

    name: str = Field(description="The file name in the form; empty for a raw body.")
    class_name: str | None = Field(
        default=None,
        description="The most probable class; null if the image is rejected as unknown; absent for a multi-label "
        "model, which returns `labels`.",
    )
    probability: float | None = Field(
        default=None,
        description="Probability of the most probable class, 0 to 1; absent for a multi-label model.",
    )
    known: Known = None
    known_score: float | None = Field(
        default=None, description="Similarity to the training images, 0 to 1; null if the model does not compute it."
    )
    prediction_set: list[str] | None = Field(
        default=None,
        description="Classes that include the true class in at least 90 % of cases; null if the model has no "
        "threshold for prediction sets.",
    )
    labels: list[Score] | None = Field(
        default=None,
        description="All classes whose probability reaches their threshold; absent if the model predicts one class per "
        "image.",
    )
    top: list[Score] | None = Field(default=None, description="The most probable classes, the most probable first.")
    error: ErrorDetail | None = Field(default=None, description="Why the image cannot be used; absent otherwise.")


class Predictions(Schema):
    """One result per image, in the order of the request."""

    model: str = Field(description="Name of the network.")
    predictions: list[ImageResult]


class Explanation(Schema):
    """How masking regions of an image changes the probability of its most probable class."""

    model: str = Field(description="Name of the network.")
    class_name: str = Field(description="The most probable class of the unmasked image.")
    probability: float = Field(description="Probability of `class_name` for the unmasked image, 0 to 1.")
    known: Known = None
    lowest: float = Field(
        description="Lowest probability of `class_name` with a region masked: the minimum of `hidden`."
    )
    place: str = Field(
        description="Position in the image of the region whose masking lowers the probability most: centre, top "
        "left, ..."
    )
    hidden: list[list[float]] = Field(
        description="Probability of `class_name` when one region of the preprocessed image is masked (hidden), by row "
        "and column of this region."
    )
    overlay: str = Field(
        description="The preprocessed image as a base64-encoded PNG. Regions are red if masking them lowers the "
        "probability."
    )


class Health(Schema):
    """The state of the service; also details of the model if the request has the token or none is required."""

    status: Literal["ok", "stopping"] = Field(
        description="`stopping` while the server finishes its last requests; /v2/health/ready then has the status 503."
    )
    model: str | None = Field(default=None, description="Name of the network.")
    classes: list[str] | None = Field(default=None, description="Class names, by class index.")
    threshold: float | None = Field(
        default=None,
        description="Rejection threshold: an image whose highest probability is below it is predicted as unknown.",
    )
    thresholds: list[float] | None = Field(
        default=None,
        description="Decision thresholds: for each class, the minimum probability at which it is predicted; only for "
        "multi-label models.",
    )
    explain: bool | None = Field(default=None, description="Whether /explain is available.")


class ServerMetadata(Schema):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(Schema):
    """Whether the server is running."""

    live: bool


class ServerReady(Schema):
    """Whether the server accepts requests."""

    ready: bool


class ModelReady(Schema):
    """Whether the model accepts requests."""

    name: str
    ready: bool


class TensorMetadata(Schema):
    """Name, datatype and shape of an input or output; -1 means any size."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, float] | None = Field(
        default=None,
        description="For the output `known`, `threshold`: an image with a lower value probably belongs to none of the "
        "classes. For `prediction_set`, `level`: the minimum fraction of cases in which the set contains the true "
        "class.",
    )


class ModelMetadata(Schema):
    """Inputs and outputs of the model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputParameters(Schema):
    """How the values of an input tensor are sent: in the JSON, or as bytes after it."""

    binary_data_size: int | None = Field(
        default=None,
        ge=0,
        strict=True,
        description="Number of bytes after the JSON that contain the values; null if the values are in `data`.",
    )


class RequestInput(Schema):
    """Images of an inference request, uint8 RGB `(N, H, W, 3)`: integers in `data`, or bytes after the JSON."""

    name: Literal[INPUT]  # type: ignore[valid-type]  # mypy does not look through the constant
    datatype: Literal["UINT8"]
    shape: tuple[PositiveInt, PositiveInt, PositiveInt, Literal[3]]
    parameters: Annotated[InputParameters, _NoneAsDict] = InputParameters()
    data: Any = Field(default=None, description="Integers from 0 to 255, flat or nested.")


class OutputParameters(Schema):
    """How an output is returned: in the JSON or as bytes after it; as numbers or as the most probable classes."""

    binary_data: bool | None = Field(
        default=None,
        description="Whether to send the values as bytes after the JSON; null: as `binary_data_output` of the request.",
    )
    classification: int = Field(
        default=0,
        ge=0,
        strict=True,
        description="Number of the most probable classes to return as texts `PROBABILITY:LABEL:NAME`; 0: return the "
        "probabilities of all classes as numbers.",
    )


class RequestOutput(Schema):
    """An output to return. The parameter `classification` has no effect on outputs other than `probabilities`."""

    name: Literal[PROBABILITIES, KNOWN, PREDICTION_SET]  # type: ignore[valid-type]
    parameters: Annotated[OutputParameters, _NoneAsDict] = OutputParameters()


class RequestParameters(Schema):
    """Parameters of a whole request."""

    binary_data_output: bool = Field(
        default=False,
        description="Default of `binary_data` for outputs that do not set it: whether their values are sent as bytes "
        "after the JSON.",
    )


class InferRequest(Schema):
    """Request to predict images given as pixels."""

    id: str | None = Field(default=None, coerce_numbers_to_str=True)
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[RequestOutput], Field(max_length=3), BeforeValidator(lambda value: value or [])] = []
    parameters: Annotated[RequestParameters, _NoneAsDict] = RequestParameters()


class ResponseOutput(Schema):
    """Output tensor in the response to an inference request.

    The shape is `(N, classes)` for `probabilities` and `prediction_set`, and `(N,)` for `known`. If the request sets
    `classification` to k, `probabilities` contains the k most probable classes as texts, and its shape is `(N, k)`.
    """

    name: str
    datatype: Literal["FP32", "BYTES", "BOOL"]
    shape: list[int]
    parameters: dict[str, int] | None = Field(
        default=None, description="`binary_data_size`: number of bytes of the values after the JSON."
    )
    data: list[Any] | None = Field(default=None, description="The values; absent if they follow the JSON as bytes.")


class InferResponse(Schema):
    """Response with the requested outputs."""

    id: str | None = None
    model_name: str
    model_version: str = "1"
    outputs: list[ResponseOutput]
