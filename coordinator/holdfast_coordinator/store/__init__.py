"""Makes the state durable, and hands it to the next leader."""
