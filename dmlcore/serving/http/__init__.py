"""A model, and an index where there is one, behind HTTP: `dmlcore serve`. FastAPI and uvicorn are imported here only."""

from dmlcore.serving.http.limits import Limits
from dmlcore.serving.http.server import run_server
from dmlcore.serving.http.service import Service

__all__ = ["Limits", "Service", "run_server"]
