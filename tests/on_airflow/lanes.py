"""Simulated lanes for tests: each serves one model of its own name, after so many seconds."""

from typing import Any


def lane(name: str, latency_s: float = 0.0, **options: Any) -> dict[str, Any]:
    return {
        "provider": f"simulated-{name}",
        "region": "global",
        "privacy_tiers": ["standard"],
        "capacity_items": 5_000_000,
        "options": {"latency_s": latency_s, **options},
        "models": [
            {
                "name": name,
                "input_usd_per_mtok": "0.10",
                "output_usd_per_mtok": "0.40",
                "tasks": ["responses"],
            }
        ],
    }
