"""What runs inside of sandboxes only, with nothing but Python's standard library. No other module imports it."""
