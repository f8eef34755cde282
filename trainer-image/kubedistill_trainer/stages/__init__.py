"""The five stages, one story each: `run(run, context) -> Success`. See `runtime` for what surrounds them."""
