"""The daemon on a node: starts workers, watches them, and speaks for them to the coordinator."""
