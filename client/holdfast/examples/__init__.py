"""Programs that show how it is used, and that run without anything else: `python -m holdfast.examples.digits`."""
