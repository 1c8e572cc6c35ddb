"""The services: thin. A handler translates, asks the engine, and translates back."""
