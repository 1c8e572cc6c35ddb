"""The coordinator's decisions, pure: no clock, no randomness, no I/O, no asyncio, no grpc.

Everything revolves around `step.step(state, event) -> Effects`. Time, ids and randomness come in with the
events; what is to be made durable and what is to be said to whom comes out.
"""
