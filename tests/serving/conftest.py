"""Fixtures of the service."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from mlimages.inference import OnnxBundle, Predictor
from mlimages.serving import ServerSettings, make_app
from tests.serving.apps import Served, run_app


@pytest.fixture(scope="module")
def serve_with(cnn_bundle: OnnxBundle) -> Iterator[Any]:
    """`serve_with(predictor, **settings)`: serve a predictor, by default of `cnn_bundle`, until the module ends."""
    with ExitStack() as running:

        def start(predictor: Predictor | None = None, **settings: Any) -> Served:
            app = make_app(predictor or Predictor(cnn_bundle, workers=1), ServerSettings(**settings))
            return running.enter_context(run_app(app))

        yield start
