"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter, defaultdict

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Counts:
    """Requests by route and status, and how long they took."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._within: dict[str, list[int]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests[route, status] += 1
        within = self._within.setdefault(route, [0] * (len(_BOUNDS) + 1))
        within[next((at for at, bound in enumerate(_BOUNDS) if seconds <= bound), len(_BOUNDS))] += 1
        self._seconds[route] += seconds

    @property
    def answered(self) -> int:
        """Requests of all kinds."""
        return sum(self._requests.values())

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """The page of metrics.

        Args:
            gauges: further numbers by name, each with what it is.
        """
        lines = ["# HELP dmlcore_requests_total Requests answered.", "# TYPE dmlcore_requests_total counter"]
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'dmlcore_requests_total{{route="{route}",status="{status}"}} {count}')
        lines += ["# HELP dmlcore_request_seconds Time to the answer.", "# TYPE dmlcore_request_seconds histogram"]
        for route, within in sorted(self._within.items()):
            total = 0
            for bound, count in zip((*_BOUNDS, "+Inf"), within, strict=True):
                total += count
                lines.append(f'dmlcore_request_seconds_bucket{{route="{route}",le="{bound}"}} {total}')
            lines.append(f'dmlcore_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}')
            lines.append(f'dmlcore_request_seconds_count{{route="{route}"}} {total}')
        for name, (about, value) in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP dmlcore_{name} {about}", f"# TYPE dmlcore_{name} {kind}", f"dmlcore_{name} {value:g}"]
        return "\n".join(lines) + "\n"
