"""The wire: settings, models, and one set of flows behind `Client` and `AsyncClient`."""
