"""A bundle as an HTTP service: a page for people, JSON for programs, the Open Inference Protocol for other tools."""

from mlimages.server.app import make_app, serve
from mlimages.server.settings import MAX_PIXELS, TOKEN_VARIABLE, ServerSettings, is_loopback

__all__ = ["MAX_PIXELS", "TOKEN_VARIABLE", "ServerSettings", "is_loopback", "make_app", "serve"]
