"""REST, server-sent events and the dashboard: a gRPC client like any other."""
